"""Lets an application's scoped_session give the handler's session while the handler runs.

The scope may begin within the handler, as Flask's application context does, or begin again after
``remove()``. So the registry's ``createfunc`` is wrapped: it gives the session of the handler that
runs in this thread, if that is in no scope. Otherwise it does what it did before, and tells the run
of the other session.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple


class _Given(NamedTuple):
    """What a registry is to give in this thread.

    Attributes:
        registry: That of a scoped_session.
        session: The handler's.
        tell: Is told of each other session that the registry makes.
    """

    registry: Any
    session: Any
    tell: Callable[[Any], None]


_running: Final = threading.local()
"""``given`` of the handler that runs in this thread."""


class _Create:
    """The ``createfunc`` of a registry that a handler has used."""

    def __init__(self, registry: Any) -> None:
        self._registry, self._original = registry, registry.createfunc

    def __call__(self) -> Any:
        given: _Given | None = getattr(_running, "given", None)
        if given is None or given.registry is not self._registry:
            return self._original()
        if not self._gives(given.session):
            return given.session
        other = self._original()
        given.tell(other)
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
        _give(_Given(registry, session, tell))
    with suppress(Exception):  # there is no scope yet
        registry.set(session)


def leave(registry: Any) -> None:
    """Let *registry* give other sessions again."""
    _running.given = None
    with suppress(Exception):  # outside of its scope by now
        registry.clear()


@contextmanager
def beside(registry: Any, session: Any, tell: Callable[[Any], None]) -> Iterator[None]:
    """As :func:`enter` and :func:`leave`, but a scope that has a session already keeps it.

    So does a handler within which another one is run.
    """
    before: _Given | None = getattr(_running, "given", None)
    _give(_Given(registry, session, tell))
    with suppress(Exception):  # there is no scope yet
        registry()  # gives the session, unless there is another
    try:
        yield
    finally:
        _running.given = before
        with suppress(Exception):  # outside of its scope by now
            if registry.has() and registry() is session:
                registry.clear()


def _give(given: _Given) -> None:
    if not isinstance(given.registry.createfunc, _Create):
        given.registry.createfunc = _Create(given.registry)
    _running.given = given
