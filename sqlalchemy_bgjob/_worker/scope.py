"""Lets an application's scoped_session give the handler's session while the handler runs.

The scope may begin within the handler, as Flask's application context does, or begin again after
``remove()``. So the registry's ``createfunc`` is wrapped: it gives the session of the handler that
runs in this thread, if that is in no scope. Otherwise it does what it did before.
"""

import threading
from contextlib import suppress
from typing import Any, Final

_running: Final = threading.local()
"""``session`` of the handler that runs in this thread, and the ``registry`` that is to give it."""


class _Create:
    """The ``createfunc`` of a registry that a worker has used."""

    def __init__(self, registry: Any) -> None:
        self._registry, self._original = registry, registry.createfunc

    def __call__(self) -> Any:
        session = getattr(_running, "session", None)
        if session is None or _running.registry is not self._registry or self._gives(session):
            return self._original()
        return session

    def _gives(self, session: Any) -> bool:
        """Whether a scope has the session already: a nested application context gets its own."""
        scopes = self._registry.registry  # a thread-local one has no other in this thread
        return isinstance(scopes, dict) and any(s is session for s in list(scopes.values()))


def enter(registry: Any, session: Any, *, late: bool) -> None:
    """Let *registry* give this session, now if there is a scope; with *late* also in later ones."""
    if late:
        if not isinstance(registry.createfunc, _Create):
            registry.createfunc = _Create(registry)
        _running.session, _running.registry = session, registry
    with suppress(Exception):  # there is no scope yet
        registry.set(session)


def leave(registry: Any) -> None:
    """Let *registry* give other sessions again."""
    _running.session = _running.registry = None
    with suppress(Exception):  # outside of its scope by now
        registry.clear()
