"""Lets an application's scoped_session give the handler's session while the handler runs.

The scope may begin within the handler, as Flask's application context does, or begin again after
``remove()``. So the registry's ``createfunc`` is wrapped: it gives the session of the handler that
runs in this thread, if that is in no scope. Otherwise it does what it did before, and tells the run
of the other session.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_running: Final = threading.local()
"""``session`` of the handler that runs in this thread, the ``registry`` that is to give it, and
``tell``, which is told of each other session that it makes."""


class _Create:
    """The ``createfunc`` of a registry that a worker has used."""

    def __init__(self, registry: Any) -> None:
        self._registry, self._original = registry, registry.createfunc

    def __call__(self) -> Any:
        session = getattr(_running, "session", None)
        if session is None or _running.registry is not self._registry:
            return self._original()
        if not self._gives(session):
            return session
        other = self._original()
        _running.tell(other)
        return other

    def _gives(self, session: Any) -> bool:
        """Whether a scope has the session already: a nested application context gets its own."""
        scopes = self._registry.registry  # a thread-local one has no other in this thread
        return isinstance(scopes, dict) and any(s is session for s in list(scopes.values()))


def enter(registry: Any, session: Any, tell: Callable[[Any], None] | None) -> None:
    """Let *registry* give this session, now if there is a scope.

    With *tell* also in later scopes; it is told of each other session that is made meanwhile.
    """
    if tell is not None:
        if not isinstance(registry.createfunc, _Create):
            registry.createfunc = _Create(registry)
        _running.session, _running.registry, _running.tell = session, registry, tell
    with suppress(Exception):  # there is no scope yet
        registry.set(session)


def leave(registry: Any) -> None:
    """Let *registry* give other sessions again."""
    _running.session = _running.registry = _running.tell = None
    with suppress(Exception):  # outside of its scope by now
        registry.clear()
