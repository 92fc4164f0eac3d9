"""Makes the handler's session the one that an application's scoped_session gives while it runs.

The scope may begin within the handler, as Flask's application context does, or begin anew after
``remove()``. So what the registry calls for a new session asks first whether a handler runs in this
thread whose session is in no scope. Elsewhere it does what it did.
"""

import threading
from contextlib import suppress
from typing import Any, Final

_running: Final = threading.local()
"""``session`` of the handler that runs in this thread, and the ``registry`` that is to give it."""


class _Create:
    """What a registry calls for a new session, once a worker has met it."""

    def __init__(self, registry: Any) -> None:
        self._registry, self._original = registry, registry.createfunc

    def __call__(self) -> Any:
        session = getattr(_running, "session", None)
        if session is None or _running.registry is not self._registry or self._gives(session):
            return self._original()
        return session

    def _gives(self, session: Any) -> bool:
        """Whether it is in another scope: an application context within another has its own."""
        scopes = self._registry.registry  # of a thread-local one, there is no other in this thread
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
    """Let it give others again."""
    _running.session = _running.registry = None
    with suppress(Exception):  # outside of its scope by now
        registry.clear()
