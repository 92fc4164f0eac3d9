"""What an arg may hold: a walk over the value, before it is encoded.

JSON encoders are lenient where a queue must not be: NaN becomes ``null``, a mapped dataclass
becomes an object, NUL becomes an escape that PostgreSQL's jsonb refuses. The walk keeps its place
in a stack of iterators: it costs little while nothing is wrong, and can name the path once
something is.
"""

import operator
from collections.abc import Iterator
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from ..exceptions import InvalidArg
from ..settings import MAX_ARG_SIZE
from .dump import dump
from .kinds import (
    BYTES,
    DECIMAL,
    ENUM,
    FLOAT,
    INT,
    MOMENT,
    NOT_FINITE,
    OBJECT,
    OPAQUE,
    PYDANTIC,
    SEQUENCE,
    STR,
    UNSET,
    UNSUPPORTED,
    classify,
    field_names,
    field_values,
    kind_of,
    known_kinds,
    refuse,
)
from .paths import join

MAX_DEPTH = 100
"""Levels of containers in an arg; well below what any JSON parser accepts."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1


def check(value: Any, *, max_size: int = MAX_ARG_SIZE) -> None:  # noqa: C901
    """Refuse values that would not survive JSON and PostgreSQL, naming their path.

    Iterative, so that MAX_DEPTH limits the depth, whatever the caller's stack has left. One
    function, because this loop is most of what an enqueue costs outside of the database.
    """
    if type(value) is str and value.isascii() and "\0" not in value and len(value) < max_size:
        return  # nothing in it to walk over
    # Every value and every character takes at least a byte. The budget ends the walk over lists
    # that share their items (2^30 leaves in thirty lists) before memory runs out.
    budget = max_size
    frames: list[tuple[Any, Iterator[Any]]] = [(None, iter((value,)))]
    kinds = known_kinds
    while frames:
        for item in frames[-1][1]:
            kind = kinds.get(type(item))
            if kind is None:
                kind = classify(item)
            if kind == ENUM:
                item = item.value  # noqa: PLW2901
                kind = kinds.get(type(item), UNSUPPORTED)
                if kind not in (OPAQUE, STR, INT, FLOAT):
                    _refuse(frames, "an Enum whose value is neither a str nor a number")
            elif kind == PYDANTIC:
                item = dump(item, lambda: _path(frames))  # noqa: PLW2901
                kind = kind_of(item)
            if kind == STR:
                budget -= len(item)
                if "\0" in item or not (item.isascii() or _is_utf8(item)):
                    _refuse(frames, _text_problem(item))
            elif kind == INT:
                if not MIN_INT <= item <= MAX_INT:
                    _refuse(frames, _INT_PROBLEM)
            elif kind == OPAQUE:
                pass
            elif kind >= SEQUENCE:
                if len(frames) > MAX_DEPTH:
                    _refuse_depth(frames)
                if kind == OBJECT:
                    children = iter(field_values(item))
                elif kind == SEQUENCE:
                    budget -= len(item)
                    children = iter(item)
                else:
                    budget -= len(item)
                    try:
                        text = "".join(item)
                    except TypeError:
                        text = "\0"
                    if text.isascii() and "\0" not in text:
                        budget -= len(text)
                    else:
                        budget -= _check_keys(frames, item)
                    children = iter(dict.values(item))
                frames.append((item, children))
                break
            elif kind == BYTES:
                budget -= len(item)
            elif kind == FLOAT:
                # True for NaN and both infinities, without a call.
                if item - item != 0.0:
                    _refuse(frames, NOT_FINITE)
            elif kind == DECIMAL:
                if not item.is_finite():
                    _refuse(frames, NOT_FINITE)
            elif kind == MOMENT:
                offset = item.utcoffset()
                if offset is not None and offset.seconds % 60:
                    _refuse(frames, "a UTC offset with seconds, which RFC 3339 lacks; use UTC")
            elif kind == UNSET:
                if not hasattr(type(frames[-1][0]), "__struct_fields__"):
                    _refuse(frames, "UNSET outside of a struct; leave the key out")
            else:
                refuse(item, lambda: _path(frames))
            if budget < 0:
                raise InvalidArg("$", size_problem(max_size))
        else:
            frames.pop()


_INT_PROBLEM = f"an int beyond 64 bits ({MIN_INT} to {MAX_INT}); use a string"


def size_problem(max_size: int) -> str:
    """The end of a sentence that begins with a size."""
    return f"more than the {max_size} bytes allowed; store it elsewhere and pass a reference"


def _check_keys(frames: list[tuple[Any, Iterator[Any]]], mapping: dict[Any, Any]) -> int:
    """Refuse keys that have no JSON form; returns how many characters all keys have."""
    seen: set[str] = set()
    for key in mapping:
        value = key.value if isinstance(key, Enum) else key
        reason = None
        if isinstance(value, str):
            if "\0" in value or not _is_utf8(value):
                reason = _text_problem(value)
        elif isinstance(value, bool) or not isinstance(value, (int, UUID)):
            reason = f"a key of type {type(key).__name__}; use str, int, UUID or Enum"
        elif isinstance(value, int) and not MIN_INT <= value <= MAX_INT:
            reason = f"a key that is {_INT_PROBLEM}"
        if reason is not None:
            raise InvalidArg(join(_path(frames), _printable(value)), reason)
        if str(value) in seen:
            path = join(_path(frames), _printable(value))
            raise InvalidArg(path, "two keys with the same JSON form; use keys of one type")
        seen.add(str(value))
    return sum(map(len, seen))


def _printable(key: Any) -> str:
    # Python refuses to print an int of more than 4,300 digits.
    if isinstance(key, int) and not MIN_INT <= key <= MAX_INT:
        return "int"
    return str(key) if isinstance(key, (str, int, UUID)) else type(key).__name__


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_problem(text: str) -> str:
    if "\0" in text:
        return "a NUL character, which PostgreSQL can't store; remove it"
    return "a lone surrogate, which is no Unicode text; decode the string properly"


def _path(frames: list[tuple[Any, Iterator[Any]]]) -> str:
    """Where the walk stands: each iterator tells how much of its container is left."""
    path = "$"
    for owner, children in frames[1:]:
        left = operator.length_hint(children)
        if isinstance(owner, dict):
            keys = list(owner)
            key = keys[len(keys) - left - 1]
            path = join(path, str(key.value if isinstance(key, Enum) else key))
        elif isinstance(owner, (list, tuple, set, frozenset)):
            path = join(path, len(owner) - left - 1)
        else:
            names = list((field_names(type(owner)) or {}).values())
            path = join(path, names[len(names) - left - 1])
    return path


def _refuse(frames: list[tuple[Any, Iterator[Any]]], reason: str) -> NoReturn:
    raise InvalidArg(_path(frames), reason)


def _refuse_depth(frames: list[tuple[Any, Iterator[Any]]]) -> NoReturn:
    met: set[int] = set()
    for index, (owner, _) in enumerate(frames[1:], 1):
        if id(owner) in met:
            raise InvalidArg(_path(frames[:index]), "a circular reference; pass ids instead")
        met.add(id(owner))
    raise InvalidArg(_path(frames), f"nested deeper than {MAX_DEPTH} levels; flatten it")
