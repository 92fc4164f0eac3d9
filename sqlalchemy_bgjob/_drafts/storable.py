"""What an arg may hold: a walk over the value, before it is encoded.

JSON encoders are lenient where a queue must not be: NaN becomes ``null``, a mapped dataclass
becomes an object, NUL becomes an escape that PostgreSQL's jsonb refuses. The walk keeps its place
in a stack of iterators: it costs little while nothing is wrong, and can name the path once
something is.

Pydantic and SQLAlchemy are recognised if the program has imported them, and never imported here:
without them the program has none of their objects.
"""

import dataclasses
import json
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import reduce
from typing import Any, NoReturn
from uuid import UUID

import msgspec

from ..exceptions import InvalidArg
from ..settings import MAX_ARG_SIZE
from .shapes import left_out_of_dump

MAX_DEPTH = 100
"""Levels of containers in an arg; well below what any JSON parser accepts."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1

_KEY_LENGTH_IN_PATHS = 64

_OPAQUE, _STR, _INT, _FLOAT, _DECIMAL, _ENUM = range(6)
_BYTES, _MOMENT, _PYDANTIC, _UNSET, _UNSUPPORTED, _SEQUENCE, _DICT, _OBJECT = range(6, 14)

_BUILTIN_KINDS: dict[type, int] = {
    type(None): _OPAQUE,
    bool: _OPAQUE,
    str: _STR,
    int: _INT,
    float: _FLOAT,
    list: _SEQUENCE,
    tuple: _SEQUENCE,
    dict: _DICT,
    set: _SEQUENCE,
    frozenset: _SEQUENCE,
    datetime: _MOMENT,
    date: _OPAQUE,
    time: _MOMENT,
    timedelta: _OPAQUE,
    UUID: _OPAQUE,
    Decimal: _DECIMAL,
    bytes: _BYTES,
    bytearray: _BYTES,
    memoryview: _BYTES,
    msgspec.UnsetType: _UNSET,
}
_kinds = dict(_BUILTIN_KINDS)
_getters: dict[type, Callable[[Any], tuple[Any, ...]]] = {}


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
    kinds = _kinds
    while frames:
        for item in frames[-1][1]:
            kind = kinds.get(type(item))
            if kind is None:
                kind = _classify(item)
            if kind == _ENUM:
                item = item.value  # noqa: PLW2901
                kind = kinds.get(type(item), _UNSUPPORTED)
                if kind not in (_OPAQUE, _STR, _INT, _FLOAT):
                    _refuse(frames, "an Enum whose value is neither a str nor a number")
            elif kind == _PYDANTIC:
                item = dump(item, lambda: _path(frames))  # noqa: PLW2901
                kind = _kind(item)
            if kind == _STR:
                budget -= len(item)
                if "\0" in item or not (item.isascii() or _is_utf8(item)):
                    _refuse(frames, _text_problem(item))
            elif kind == _INT:
                if not MIN_INT <= item <= MAX_INT:
                    _refuse(frames, _INT_PROBLEM)
            elif kind == _OPAQUE:
                pass
            elif kind >= _SEQUENCE:
                if len(frames) > MAX_DEPTH:
                    _refuse_depth(frames)
                if kind == _OBJECT:
                    children = iter(_field_values(item))
                elif kind == _SEQUENCE:
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
            elif kind == _BYTES:
                budget -= len(item)
            elif kind == _FLOAT:
                # True for NaN and both infinities, without a call.
                if item - item != 0.0:
                    _refuse(frames, _NOT_FINITE)
            elif kind == _DECIMAL:
                if not item.is_finite():
                    _refuse(frames, _NOT_FINITE)
            elif kind == _MOMENT:
                offset = item.utcoffset()
                if offset is not None and offset.seconds % 60:
                    _refuse(frames, "a UTC offset with seconds, which RFC 3339 lacks; use UTC")
            elif kind == _UNSET:
                if not hasattr(type(frames[-1][0]), "__struct_fields__"):
                    _refuse(frames, "UNSET outside of a struct; leave the key out")
            else:
                _refuse_foreign(item, lambda: _path(frames))
                _refuse(frames, f"{type(item).__name__} has no JSON form; pass plain data")
            if budget < 0:
                raise InvalidArg("$", size_problem(max_size))
        else:
            frames.pop()


_NOT_FINITE = "NaN and infinities have no JSON form; use None or a string"
_INT_PROBLEM = f"an int beyond 64 bits ({MIN_INT} to {MAX_INT}); use a string"


def size_problem(max_size: int) -> str:
    """The end of a sentence that begins with a size."""
    return f"more than the {max_size} bytes allowed; store it elsewhere and pass a reference"


def _kind(item: Any) -> int:
    kind = _kinds.get(type(item))
    return _classify(item) if kind is None else kind


def _classify(item: Any) -> int:  # noqa: C901
    """The kind of a value whose type was not met before."""
    cls = type(item)
    if _sqlalchemy_inspect(item) is not None:
        kind = _UNSUPPORTED
    elif isinstance(item, Enum):
        kind = _ENUM
    elif is_model(cls):
        kind = _PYDANTIC
    elif isinstance(item, str):
        kind = _STR
    elif isinstance(item, int):
        kind = _INT
    elif isinstance(item, float):
        kind = _FLOAT
    elif isinstance(item, Decimal):
        kind = _DECIMAL
    elif isinstance(item, (datetime, time)):
        kind = _MOMENT
    elif isinstance(item, (date, timedelta, UUID)):
        kind = _OPAQUE
    elif isinstance(item, dict):
        kind = _DICT
    elif isinstance(item, (list, tuple, set, frozenset)):
        kind = _SEQUENCE
    elif _field_names(cls) is not None:
        kind = _OBJECT
    else:
        kind = _UNSUPPORTED
    # Bounded, for programs that create classes at run time.
    if len(_kinds) > 2_000:
        _kinds.clear()
        _kinds.update(_BUILTIN_KINDS)
        _getters.clear()
    _kinds[cls] = kind
    return kind


def _field_names(cls: type) -> dict[str, str] | None:
    """Attribute to JSON name, for the classes that msgspec encodes field by field."""
    struct = getattr(cls, "__struct_fields__", None)
    if struct is not None:
        return dict(zip(struct, cls.__struct_encode_fields__, strict=True))  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(cls):
        return {field.name: field.name for field in dataclasses.fields(cls)}
    attrs = getattr(cls, "__attrs_attrs__", None)
    if attrs is not None:
        return {attribute.name: attribute.name for attribute in attrs}
    return None


def _field_values(item: Any) -> Sequence[Any]:
    cls = type(item)
    getter = _getters.get(cls)
    if getter is None:
        names = tuple(_field_names(cls) or ())
        if len(names) > 1:
            getter = operator.attrgetter(*names)
        else:
            # attrgetter of one name gives no tuple.
            def getter(obj: Any) -> tuple[Any, ...]:
                return tuple(getattr(obj, name) for name in names)

        _getters[cls] = getter
    try:
        return getter(item)
    except AttributeError:
        # A field that was never set: msgspec leaves it out, and decoding tells whether it matters.
        return [getattr(item, name, None) for name in _field_names(cls) or ()]


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
            names = list((_field_names(type(owner)) or {}).values())
            path = join(path, names[len(names) - left - 1])
    return path


def join(path: str, step: str | int) -> str:
    """A path, one step further: ``.name``, ``["odd key"]`` or ``[3]``."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    if len(step) > _KEY_LENGTH_IN_PATHS:
        step = step[:_KEY_LENGTH_IN_PATHS] + "..."
    return f"{path}.{step}" if step.isidentifier() else f"{path}[{json.dumps(step)}]"


def _refuse(frames: list[tuple[Any, Iterator[Any]]], reason: str) -> NoReturn:
    raise InvalidArg(_path(frames), reason)


def _refuse_depth(frames: list[tuple[Any, Iterator[Any]]]) -> NoReturn:
    met: set[int] = set()
    for index, (owner, _) in enumerate(frames[1:], 1):
        if id(owner) in met:
            raise InvalidArg(_path(frames[:index]), "a circular reference; pass ids instead")
        met.add(id(owner))
    raise InvalidArg(_path(frames), f"nested deeper than {MAX_DEPTH} levels; flatten it")


# --- SQLAlchemy and pydantic, if the program uses them ----------------------------------------


def _sqlalchemy_inspect(item: Any) -> Any:
    """SQLAlchemy's inspection of an object; None if the object is not SQLAlchemy's."""
    inspect = getattr(sys.modules.get("sqlalchemy"), "inspect", None)
    # Inspecting a class would configure its mappers, and a class is no value anyway.
    if inspect is None or isinstance(item, type):
        return None
    return inspect(item, raiseerr=False)


def _refuse_foreign(item: Any, path: "str | Callable[[], str]") -> None:
    """Refuse SQLAlchemy's objects, and say what to pass instead."""
    known = _sqlalchemy_inspect(item)
    if known is None:
        return
    where = path if isinstance(path, str) else path()
    name = type(item).__name__
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(known, orm.InstanceState):
        raise InvalidArg(where, f"{name} is an ORM instance; pass the primary key")
    raise InvalidArg(where, f"{name} is a SQL construct and no value; select its value first")


def is_model(cls: Any) -> bool:
    """Whether *cls* is a pydantic model; false where pydantic isn't used."""
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return base is not None and isinstance(cls, type) and issubclass(cls, base)


def dump(item: Any, path: "str | Callable[[], str]") -> Any:
    """A pydantic object as JSON values, named and shaped so that validation takes them back."""
    if _kind(item) == _UNSUPPORTED:
        _refuse_foreign(item, path)
    options: dict[str, Any] = {"mode": "json", "round_trip": True, "warnings": False}
    try:
        if is_model(type(item)):
            # Validation reads aliases, so aliases must be stored.
            options["by_alias"] = item.model_config.get("validate_by_alias", True)
            dumped = item.model_dump(**options)
        else:
            dumped = type(item).__pydantic_serializer__.to_python(item, by_alias=True, **options)
        problem = _lost_in_dump(item, dumped)
        lost = left_out_of_dump(item)
    except MemoryError:
        raise
    except Exception as error:
        problem, lost = f"can't be dumped as JSON ({type(error).__name__})", None
    if problem is None and lost is None:
        return dumped
    where, name = path if isinstance(path, str) else path(), type(item).__name__
    if problem is not None:
        raise InvalidArg(where, f"{name} {problem}")
    raise InvalidArg(
        reduce(join, lost or (), where),
        f"a field of a subclass, which {name} leaves out; name the subclass in its annotation",
    )


def _lost_in_dump(item: Any, dumped: Any) -> str | None:
    """The problem, if pydantic's dump silently lost something; None otherwise."""
    leaves, held = list(_leaves(dumped)), list(_leaves(item))
    if "**********" in leaves:
        return "holds a secret that pydantic masks; pass a reference to it"
    # SQLModel's tables are models, too, and would be dumped like any other.
    if any(_is_object(part) and _kind(part) == _UNSUPPORTED for part in held):
        return "holds an ORM instance; pass the primary key"
    # In an untyped field NaN becomes None. (In a float field it stays, and the walk finds it.)
    if None in leaves and any(map(_not_finite, held)) and not any(map(_not_finite, leaves)):
        return f"holds NaN or an infinity; {_NOT_FINITE}"
    return None


def _not_finite(item: Any) -> bool:
    return isinstance(item, float) and item - item != 0.0


def _is_object(item: Any) -> bool:
    """Whether it is an instance of a pydantic model or dataclass."""
    return hasattr(type(item), "__pydantic_serializer__")


def _leaves(value: Any) -> Iterator[Any]:
    """Every value that is not a container, and every pydantic object on the way."""
    stack = [value]
    met: set[int] = set()
    while stack:
        item = stack.pop()
        if _BUILTIN_KINDS.get(type(item), _UNSUPPORTED) < _PYDANTIC:
            yield item
            continue
        if isinstance(item, (dict, list, tuple, set, frozenset)) or _is_object(item):
            # Fields that are excluded from dumps may close a cycle.
            if id(item) in met:
                continue
            met.add(id(item))
        if isinstance(item, dict):
            inner: Iterable[Any] = item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            inner = item
        elif _is_object(item):
            yield item
            inner = (getattr(item, "__dict__", None), getattr(item, "__pydantic_extra__", None))
        else:
            yield item
            continue
        stack.extend(inner)
