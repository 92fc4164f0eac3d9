"""Clear errors for calls that Python would let pass, or refuse with a riddle. Pure."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def name_of(given: object) -> str:
    """An object's name for messages: a function's or class's own, else that of its type."""
    return str(getattr(given, "__name__", type(given).__name__))


def refuse_unknown(call: str, given: Mapping[str, object], declared: Any) -> None:
    """Refuse keywords that the TypedDict *declared* does not have, as Python refuses them."""
    known = declared.__optional_keys__ | declared.__required_keys__
    if given and (unknown := given.keys() - known):
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r}")


def needs_a_type(method: Callable[P, R]) -> Callable[P, R]:
    """Refuse ``@jobs.handler`` without parentheses, or without a type's name in them."""

    @wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = args[1] if len(args) > 1 else kwargs.get("type", ...)
        if given is ...:
            raise TypeError(
                "@jobs.handler(...) needs the name of the job's type, which is stored with each "
                "job; write for example @jobs.handler('send_receipt')"
            )
        if callable(given):
            raise TypeError(
                f"@jobs.handler got {name_of(given)} instead of the name of a job's type; write "
                f"@jobs.handler({name_of(given)!r})"
            )
        return method(*args, **kwargs)

    return checked


class OnlyWith:
    """Mixin of classes that are entered by ``with``: refuses ``async with``, and says why."""

    if not TYPE_CHECKING:

        async def __aenter__(self) -> NoReturn:
            name = type(self).__name__
            raise TypeError(f"{name} is entered by `with`; in a coroutine use AsyncWorker")

        async def __aexit__(self, *_: object) -> None: ...


class OnlyAsyncWith:
    """Mixin of classes that are entered by ``async with``: refuses ``with``, and says why."""

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise TypeError(
                f"{type(self).__name__} is entered by `async with`, in a coroutine; "
                f"without an event loop use Worker"
            )

        def __exit__(self, *_: object) -> None: ...
