"""Resources: what the application's provider fills a handler's keyword-only parameters with.

The provider is asked for its names once, when the BGJob is made: they are the keys of the TypedDict
that it is annotated to yield. So a handler that wants something else is refused when it is
registered, and not at its first job.
"""

import inspect
import sys
import typing
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
)
from types import SimpleNamespace
from typing import Any, Final, NoReturn

from typing_extensions import is_typeddict

from .._db.errors import did_you_mean
from .._misuse import name_of
from .kinds import code_of, makes_async_context, makes_no_context, what_it_is

if sys.version_info >= (3, 14):
    import annotationlib

_OFTEN_FOR_TYPE_CHECKERS_ALONE: Final = {
    name: getattr(abc, name)
    for name in ("AsyncGenerator", "AsyncIterator", "Generator", "Iterator")
} | {one.__name__: one for one in (AbstractAsyncContextManager, AbstractContextManager)}
_EXAMPLE: Final = (
    "write @contextmanager, and def provide(ctx) -> Generator[Resources], where class "
    "Resources(TypedDict) has the names at the top level of its module"
)


class Provider:
    """What was given as ``BGJob(..., provide=)``.

    Attributes:
        make: Returns a context manager that yields the resources of one attempt.
        names: What there is in the mapping that it yields.
        is_async: Whether coroutines alone can have them.

    Raises:
        TypeError: It makes no context managers, or does not say what these yield.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        if makes_no_context(make) or isinstance(make, type):
            raise TypeError(
                f"provide= takes a function of ctx that returns a context manager, not "
                f"{what_it_is(make)}; {_EXAMPLE}"
            )
        self.make = make
        self.names: Final[frozenset[str]] = _names_of(make)
        self.is_async: Final[bool] = makes_async_context(make)

    def refuse(self, where: str, missing: Sequence[str]) -> NoReturn:
        """Refuse a handler that wants what there is not."""
        guess = did_you_mean(missing[0], self.names)
        raise TypeError(
            f"handler {where} takes {', '.join(map(repr, missing))}, and provide= gives "
            f"{', '.join(sorted(self.names)) or 'nothing'}; "
            f"{guess or 'add it to the TypedDict that the provider yields'}"
        )

    def fill(self, call: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
        """A function *call* with its resources, which are closed when it has ended."""
        make = self.make

        def run(*args: Any) -> Any:
            error: BaseException | None = None
            try:
                manager: AbstractContextManager[Any, bool] = make(args[0])
                with manager as found:
                    try:
                        return call(*args, **_picked(found, names))
                    except BaseException as raised:
                        error = raised
                        raise
                assert error is not None
                raise error  # the provider has swallowed it, and does not decide about the job
            finally:
                error = None  # its traceback leads here: a circle

        return run

    def fill_async(self, call: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
        """The same for a coroutine, whose resources may be those of a function."""
        make = self.make

        async def run(*args: Any) -> Any:
            error: BaseException | None = None
            try:
                stack: AsyncExitStack[bool] = AsyncExitStack()
                async with stack:
                    manager = make(args[0])
                    if hasattr(manager, "__aenter__"):
                        found = await stack.enter_async_context(manager)
                    else:
                        found = stack.enter_context(manager)
                    try:
                        return await call(*args, **_picked(found, names))
                    except BaseException as raised:
                        error = raised
                        raise
                assert error is not None
                raise error
            finally:
                error = None

        return run


def _picked(found: object, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise TypeError(
            f"provide= yielded a {type(found).__name__}, and not a mapping; yield a dict with the "
            f"keys of its TypedDict"
        )
    return {name: found[name] for name in names if name in found}


def _names_of(make: Callable[..., Any]) -> frozenset[str]:
    """The keys of the TypedDict that a provider is annotated to yield."""
    function = inspect.unwrap(code_of(make))
    if sys.version_info < (3, 14):
        signature = inspect.signature(function)
    else:  # names for type checkers alone need not exist
        form = annotationlib.Format.FORWARDREF
        signature = inspect.signature(function, annotation_format=form)
    written = signature.return_annotation
    if written is inspect.Signature.empty:
        raise TypeError(f"provide={name_of(make)} does not say what it yields; {_EXAMPLE}")
    names = _OFTEN_FOR_TYPE_CHECKERS_ALONE | getattr(function, "__globals__", {})
    only_this = SimpleNamespace(__annotations__={"return": written})
    try:
        hint = typing.get_type_hints(only_this, globalns=names)["return"]
    except NameError as error:
        raise TypeError(
            f"the annotation {written!r} of provide={name_of(make)} can't be resolved ({error}); "
            f"{_EXAMPLE}"
        ) from None
    yielded = (*typing.get_args(hint), hint)[0]
    if not is_typeddict(yielded):
        raise TypeError(f"provide={name_of(make)} is not annotated with a TypedDict; {_EXAMPLE}")
    return frozenset(yielded.__required_keys__ | yielded.__optional_keys__)
