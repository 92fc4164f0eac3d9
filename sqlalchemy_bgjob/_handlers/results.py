"""What a handler gives to ``Complete(result=...)``, as its annotation says."""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from .._drafts.shapes import members
from .kinds import code_of
from .outcomes import Complete


def result_annotation(function: Callable[..., Any]) -> Any:
    """The type in ``-> Complete[...]``; Any if the handler names none.

    It may be within a union, or a dict of the outcomes of a chunk by job id.

    A name that exists for type checkers alone can't be looked up, and counts as none.
    """
    code = inspect.unwrap(code_of(function))
    written = getattr(code, "__annotations__", {}).get("return")
    only = SimpleNamespace(__annotations__={"return": written})
    names = getattr(code, "__globals__", {})
    try:
        hint = typing.get_type_hints(only, globalns=names, include_extras=True)["return"]
    except (NameError, AttributeError):
        return Any
    for outcome in _outcomes(hint):
        if typing.get_origin(outcome) is Complete:
            return typing.get_args(outcome)[0]
    return Any


def _outcomes(hint: Any) -> Iterator[Any]:
    for member in members(hint):
        match typing.get_origin(member), typing.get_args(member):
            case type() as origin, (_, values) if issubclass(origin, Mapping):
                yield from members(values)
            case _:
                yield member
