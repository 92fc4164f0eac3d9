"""The lifespan of a worker: the application's context around all that the worker does.

It is entered once, before the first claim, and left when the worker has drained. Its value is what
handlers find as ``ctx.state``.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from .kinds import makes_async_context, makes_no_context, what_it_is

_REMEDY = "of a generator @contextlib.contextmanager makes one"


class Lifespan:
    """What was given as ``lifespan=`` to a worker; with None there is nothing to enter.

    Attributes:
        state: What it has yielded; None until then.

    Raises:
        TypeError: It can't be called for a context manager, or for none that this worker can enter.
    """

    __slots__ = ("_make", "state")

    def __init__(self, make: Callable[[], Any] | None, *, is_async: bool) -> None:
        if make is not None and makes_no_context(make):
            raise TypeError(
                f"lifespan= takes a callable that returns a context manager, not "
                f"{what_it_is(make)}; {_REMEDY}"
            )
        if make is not None and not is_async and makes_async_context(make):
            raise TypeError(
                "lifespan= returns an asynchronous context manager, which a Worker can't enter; "
                "use AsyncWorker, or give one that has __enter__"
            )
        self._make = make
        self.state: Any = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter it in a Worker.

        Raises:
            TypeError: It made no context manager that a Worker can enter.
        """
        if self._make is None:
            yield
            return
        manager = self._made()
        if not hasattr(manager, "__enter__"):
            raise _gave(manager)
        with manager as self.state:
            yield

    @asynccontextmanager
    async def entered_async(self) -> AsyncIterator[None]:
        """Enter it in an AsyncWorker, asynchronously if it can be.

        Raises:
            TypeError: It made no context manager.
        """
        if self._make is None:
            yield
            return
        manager = self._made()
        if not hasattr(manager, "__aenter__"):
            if not hasattr(manager, "__enter__"):
                raise _gave(manager)
            with manager as self.state:
                yield
            return
        async with manager as self.state:
            yield

    def _made(self) -> Any:
        assert self._make is not None
        return self._make()


def _gave(manager: object) -> TypeError:
    return TypeError(
        f"lifespan= gave a {type(manager).__name__}, which is no context manager; {_REMEDY}"
    )
