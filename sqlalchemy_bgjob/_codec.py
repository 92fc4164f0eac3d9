"""A job's arg: from the caller's value to the bytes of the row and back, by an annotation.

* A value is walked before it is encoded. JSON encoders are lenient where a queue must not be: NaN
  becomes ``null``, a mapped dataclass becomes an object, NUL becomes an escape that PostgreSQL's
  jsonb refuses. The walk keeps its place in a stack of iterators, so that it costs little while
  nothing is wrong, and can name the path once something is.
* What was encoded is decoded before it is stored. So a job that was enqueued can be run, and the
  mistake is found in the caller's stack trace and not in a dead job.
* Only bytes, and nothing else, are stored as they are; the content type tells them from JSON.
* Messages name paths, types and limits, never values.

msgspec does the work. Pydantic and SQLAlchemy are recognised when the program has imported them,
and never imported here: a value or an annotation of theirs can't exist before that.
"""

import dataclasses
import json
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import Parameter
from typing import Annotated, Any, NamedTuple, NoReturn, Union
from uuid import UUID

import msgspec
import msgspec.inspect

from .exceptions import InvalidArg
from .settings import MAX_ARG_SIZE

MAX_DEPTH = 100
"""Levels of containers in an arg; well below what any JSON parser accepts."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1

OCTET_STREAM = "application/octet-stream"

_BYTES_TYPES = (bytes, bytearray, memoryview)
_KEY_LENGTH_IN_PATHS = 64


class Encoded(NamedTuple):
    """What a row stores; a content type of None is JSON (or no arg at all)."""

    data: bytes | None
    content_type: str | None


class Fields(NamedTuple):
    """The JSON names of an object's fields."""

    known: frozenset[str]
    required: frozenset[str]


class Codec:
    """Encodes and decodes the args of one handler; compiled once, safe for threads.

    Args:
        annotation: What the handler's arg is annotated with, already resolved: a dataclass,
            msgspec.Struct, TypedDict, pydantic model, ``bytes``, any type that msgspec knows; Any,
            ``object`` and ``Parameter.empty`` take everything.

    Raises:
        TypeError: The annotation can't be decoded from JSON.
    """

    def __init__(self, annotation: Any = Any) -> None:
        if isinstance(annotation, str):
            raise TypeError(f"annotation {annotation!r} is a string; resolve it first")
        members = _members(annotation)
        self._untyped = any(m is Any or m is object or m is Parameter.empty for m in members)
        if self._untyped:
            annotation, members = Any, [Any]
        self.annotation = annotation
        self._name = _name(annotation)
        self._raw_type = next((m for m in members if m in _BYTES_TYPES), None)
        rest = [m for m in members if m not in _BYTES_TYPES]
        self._only_raw = self._raw_type is not None and all(m is type(None) for m in rest)
        self._load: Callable[[bytes], Any] = _decoder(
            # msgspec would read these bytes from a base64 string, and allows no str beside them.
            annotation if self._raw_type is None or not rest else Union[tuple(rest)]  # noqa: UP007
        )
        self.allows_none = type(None) in members or self._loads_null()

    def encode(self, arg: Any, *, max_size: int = MAX_ARG_SIZE) -> Encoded:
        """The bytes to store for *arg*, which :meth:`decode` is sure to read.

        Raises:
            InvalidArg: The value can't be stored, or does not fit the annotation.
        """
        if arg is None:
            if not self.allows_none:
                raise InvalidArg("$", f"None given, but the handler takes {self._name}")
            return Encoded(None, None)
        if isinstance(arg, _BYTES_TYPES):
            if self._raw_type is None and not self._untyped:
                got = type(arg).__name__
                raise InvalidArg("$", f"{got} given, but the handler takes {self._name}")
            size = arg.nbytes if isinstance(arg, memoryview) else len(arg)
            _check_size(size, max_size)
            return Encoded(bytes(arg), OCTET_STREAM)
        if self._only_raw:
            got = type(arg).__name__
            raise InvalidArg("$", f"{got} given, but the handler takes {self._name}; encode it")
        if hasattr(type(arg), "__pydantic_serializer__"):
            _refuse_foreign(arg, "$")
            arg = _dump(arg, "$")
        check(arg, max_size=max_size)
        data = _encode(arg)
        _check_size(len(data), max_size)
        if not self._untyped:
            self._decode_json(data)
        return Encoded(data, None)

    def decode(
        self, data: bytes | None, content_type: str | None = None, *, max_size: int = MAX_ARG_SIZE
    ) -> Any:
        """The arg to call the handler with, from what a row stores.

        An annotation of ``bytes`` gets what is stored, whatever the content type says.

        Raises:
            InvalidArg: The bytes are too many, malformed, or don't fit the annotation.
        """
        if data is None:
            if not self.allows_none:
                raise InvalidArg("$", f"there is no arg, but the handler takes {self._name}")
            return None
        _check_size(len(data), max_size)
        if self._only_raw or not _is_json(content_type):
            if self._untyped:
                return bytes(data)
            if self._raw_type is None:
                # The content type comes from a row's headers; it is not shown, like all such text.
                raise InvalidArg("$", f"stored as bytes, but the handler takes {self._name}")
            return self._raw_type(data)
        _check_depth(data)
        return self._decode_json(data)

    def _decode_json(self, data: bytes) -> Any:
        try:
            return self._load(data)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - validators are code of the user's
            failure = error
        # Outside the except block, so that no traceback shows the values which the cause may hold.
        path, reason = _explain(failure, data, self._load)
        raise InvalidArg(path, reason.format(name=self._name))

    def _loads_null(self) -> bool:
        try:
            self._load(b"null")
        except Exception:  # noqa: BLE001 - whatever it is, null was not taken
            return False
        return True


def fields(annotation: Any) -> Fields | None:
    """The fields of an object-like annotation (or of one that may also be None), else None.

    Names are those in JSON: a struct's ``rename`` and a model's aliases are applied.
    """
    members = [member for member in _members(annotation) if member is not type(None)]
    if len(members) != 1:
        return None
    (member,) = members
    if hasattr(member, "__pydantic_validator__") and hasattr(member, "model_fields"):
        return _pydantic_fields(member)
    try:
        info = msgspec.inspect.type_info(member)
    except (TypeError, NameError):
        return None
    match info:
        case msgspec.inspect.StructType(array_like=True):
            return None
        case (
            msgspec.inspect.StructType()
            | msgspec.inspect.DataclassType()
            | msgspec.inspect.TypedDictType()
        ):
            return Fields(
                frozenset(field.encode_name for field in info.fields),
                frozenset(field.encode_name for field in info.fields if field.required),
            )
    return None


# --- The walk over a value -------------------------------------------------------------------

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
    """Refuse what would not survive the way through JSON and PostgreSQL, naming its path.

    Iterative, so that depth is a matter of MAX_DEPTH and not of how deep the caller's stack is;
    one function, because this loop is most of what an enqueue costs outside of the database.
    """
    # Every value and every character takes a byte at least. Counting them ends the walk over a
    # value that holds itself many times over (2^30 leaves in thirty lists) before memory does.
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
                item = _dump(item, lambda: _path(frames))  # noqa: PLW2901
                kind = kinds.get(type(item))
                if kind is None:
                    kind = _classify(item)
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
                    if item:
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
                raise InvalidArg("$", _size_problem(max_size))
        else:
            frames.pop()


_NOT_FINITE = "NaN and infinities have no JSON form; use None or a string"
_INT_PROBLEM = f"an int beyond 64 bits ({MIN_INT} to {MAX_INT}); use a string"


def _classify(item: Any) -> int:  # noqa: C901
    """The kind of a type that was not met before."""
    cls = type(item)
    if _sqlalchemy_inspect(item) is not None:
        kind = _UNSUPPORTED
    elif isinstance(item, Enum):
        kind = _ENUM
    elif _is_model(cls):
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
    # Bounded, for programs that make classes as they go.
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
    """Refuse keys that JSON has no form for; the number of characters otherwise."""
    try:
        text = "".join(mapping)
    except TypeError:
        text = "\0"
    if "\0" not in text and (text.isascii() or _is_utf8(text)):
        return len(text)
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
            raise InvalidArg(_join(_path(frames), _printable(value)), reason)
        if str(value) in seen:
            path = _join(_path(frames), _printable(value))
            raise InvalidArg(path, "two keys with the same JSON form; use keys of one type")
        seen.add(str(value))
    return sum(map(len, seen))


def _printable(key: Any) -> str:
    # Not every int can be printed: from 4,300 digits on that is an error of its own.
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
            path = _join(path, str(key.value if isinstance(key, Enum) else key))
        elif isinstance(owner, (list, tuple, set, frozenset)):
            path = _join(path, len(owner) - left - 1)
        else:
            names = list((_field_names(type(owner)) or {}).values())
            path = _join(path, names[len(names) - left - 1])
    return path


def _join(path: str, step: str | int) -> str:
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
    """What SQLAlchemy knows about an object: None, unless it is one of its own."""
    inspect = getattr(sys.modules.get("sqlalchemy"), "inspect", None)
    # Inspecting a class would configure its mappers, and a class is no value anyway.
    if inspect is None or isinstance(item, type):
        return None
    return inspect(item, raiseerr=False)


def _refuse_foreign(item: Any, path: "str | Callable[[], str]") -> None:
    known = _sqlalchemy_inspect(item)
    if known is None:
        return
    where = path if isinstance(path, str) else path()
    name = type(item).__name__
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(known, orm.InstanceState):
        raise InvalidArg(where, f"{name} is an ORM instance; pass the primary key")
    raise InvalidArg(where, f"{name} is a SQL construct and no value; select its value first")


def _is_model(cls: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return base is not None and isinstance(cls, type) and issubclass(cls, base)


def _dump(item: Any, path: "str | Callable[[], str]") -> Any:
    """A pydantic object as JSON values, named and shaped so that validation takes them back."""
    options: dict[str, Any] = {"mode": "json", "round_trip": True, "warnings": False}
    try:
        if _is_model(type(item)):
            # Validation reads aliases, so those are what must be stored.
            options["by_alias"] = item.model_config.get("validate_by_alias", True)
            dumped = item.model_dump(**options)
        else:
            dumped = type(item).__pydantic_serializer__.to_python(item, by_alias=True, **options)
        problem = _lost_in_dump(item, dumped)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - serializers are code of the user's
        problem = f"can't be dumped as JSON ({type(error).__name__})"
    if problem is None:
        return dumped
    raise InvalidArg(path if isinstance(path, str) else path(), f"{type(item).__name__} {problem}")


def _lost_in_dump(item: Any, dumped: Any) -> str | None:
    """What pydantic drops without a word, so that the handler would get something else."""
    leaves = list(_leaves(dumped))
    if "**********" in leaves:
        return "holds a secret that pydantic masks; pass a reference to it"
    # In a field without a type, NaN becomes None. (In one of float it stays; the walk finds it.)
    if (
        None in leaves
        and not any(map(_not_finite, leaves))
        and any(map(_not_finite, _leaves(item)))
    ):
        return f"holds NaN or an infinity; {_NOT_FINITE}"
    return None


def _not_finite(item: Any) -> bool:
    return isinstance(item, float) and item - item != 0.0


def _leaves(value: Any) -> Iterator[Any]:
    stack = [value]
    met: set[int] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            inner: Iterable[Any] = item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            inner = item
        elif hasattr(type(item), "__pydantic_serializer__"):
            inner = (getattr(item, "__dict__", None), getattr(item, "__pydantic_extra__", None))
        else:
            yield item
            continue
        # Fields that are excluded from dumps may point back.
        if id(item) not in met:
            met.add(id(item))
            stack.extend(inner)


def _pydantic_fields(model: Any) -> Fields:
    config = model.model_config
    by_name = config.get("validate_by_name") or config.get("populate_by_name")
    by_alias = config.get("validate_by_alias", True)
    known: set[str] = set()
    required: set[str] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        plain = [alias] if isinstance(alias, str) and by_alias else []
        names = plain + ([name] if by_name or not plain else [])
        known.update(names)
        if field.is_required():
            required.add(names[0])
    return Fields(frozenset(known), frozenset(required))


# --- Encoding and decoding --------------------------------------------------------------------


def _enc_hook(item: Any) -> Any:
    # Subclasses that msgspec does not know are stored as their base, like json.dumps does.
    if isinstance(item, str):
        return str.__str__(item)
    if isinstance(item, int):
        return int(item)
    if isinstance(item, float):
        return float(item)
    if isinstance(item, Decimal):
        return Decimal(item)
    if isinstance(item, datetime):
        return datetime.combine(item.date(), item.timetz())
    if isinstance(item, date):
        return date(item.year, item.month, item.day)
    if isinstance(item, time):
        return time(item.hour, item.minute, item.second, item.microsecond, item.tzinfo)
    if isinstance(item, timedelta):
        return timedelta(item.days, item.seconds, item.microseconds)
    if _is_model(type(item)):
        return _dump(item, "$")
    raise TypeError(type(item).__name__)


_encoder = msgspec.json.Encoder(enc_hook=_enc_hook)


def _encode(arg: Any) -> bytes:
    try:
        return _encoder.encode(arg)
    except (MemoryError, InvalidArg):
        raise
    except Exception as error:  # noqa: BLE001 - subclasses may do anything
        failure = type(error).__name__
    raise InvalidArg("$", f"{type(arg).__name__} can't be encoded as JSON ({failure})")


def _dec_hook(cls: type, item: Any) -> Any:
    if cls is object:
        return item
    # From JSON once more: a strict model takes a datetime from a JSON string, not from a str.
    return _adapter(cls)(msgspec.json.encode(item))


def _decoder(annotation: Any) -> Callable[[bytes], Any]:
    """The function that decodes JSON to the annotation; what can't be decoded is refused here."""
    members = [member for member in _members(annotation) if member is not type(None)]
    if any(hasattr(member, "__pydantic_validator__") for member in members):
        for member in members:
            _refuse_mapped(member, annotation)
        return _adapter(annotation)
    try:
        info = msgspec.inspect.type_info(annotation)
        decoder: Any = msgspec.json.Decoder(annotation, dec_hook=_dec_hook)
    except TypeError as error:
        if "pydantic" not in sys.modules:
            raise TypeError(f"arg annotation {_name(annotation)}: {error}") from error
        # Unions of models are more than msgspec can tell apart.
        try:
            return _adapter(annotation)
        except Exception:  # noqa: BLE001 - the first error is the one to show
            raise TypeError(f"arg annotation {_name(annotation)}: {error}") from error
    for cls in _classes(info):
        _refuse_mapped(cls, annotation)
    for custom in _classes(info, custom=True):
        if custom is not object and not hasattr(custom, "__pydantic_validator__"):
            raise TypeError(
                f"arg annotation {_name(annotation)}: {_name(custom)} can't be decoded from JSON; "
                f"use a dataclass, a msgspec.Struct, a pydantic model or built-in types"
            )
    load: Callable[[bytes], Any] = decoder.decode
    return load


def _refuse_mapped(cls: Any, annotation: Any) -> None:
    # sqlalchemy.inspect(cls) would configure the mappers, too early for most programs.
    if hasattr(cls, "_sa_class_manager"):
        raise TypeError(
            f"arg annotation {_name(annotation)}: {_name(cls)} is an ORM class; "
            f"take the primary key"
        )


def _adapter(annotation: Any) -> Callable[[bytes], Any]:
    adapter = sys.modules["pydantic"].TypeAdapter(annotation)
    validate: Callable[[bytes], Any] = adapter.validate_json

    def load(data: bytes) -> Any:
        # Pydantic's own parser takes NaN, Infinity and 1e400, which are no JSON numbers.
        msgspec.json.decode(data)
        return validate(data)

    return load


def _classes(info: msgspec.inspect.Type, *, custom: bool = False) -> Iterator[type]:
    """The classes that an annotation is made of, nested ones included."""
    stack: list[Any] = [info]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if isinstance(node, (tuple, list)):
            stack.extend(node)
            continue
        if not isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)):
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        cls: Any = getattr(node, "cls", None)
        if isinstance(node, msgspec.inspect.CustomType):
            yield typing.get_origin(cls) or cls
        elif cls is not None and not custom:
            yield cls
        stack.extend(getattr(node, name) for name in node.__struct_fields__)


def _members(annotation: Any) -> list[Any]:
    """The members of a union, aliases resolved; any other type is its own only member."""
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            break
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [part for member in typing.get_args(annotation) for part in _members(member)]
    return [type(None) if annotation is None else annotation]


def _name(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__.rpartition("<locals>.")[2]
    return str(annotation).replace("typing.", "")


def _is_json(content_type: str | None) -> bool:
    return content_type is None or content_type.partition(";")[0].strip() == "application/json"


def _check_size(size: int, max_size: int) -> None:
    if size > max_size:
        raise InvalidArg("$", f"{size} bytes, {_size_problem(max_size)}")


def _size_problem(max_size: int) -> str:
    return f"more than the {max_size} bytes allowed; store it elsewhere and pass a reference"


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before a parser recurses; how deep those go differs by Python version."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    # Each round takes the innermost level away, however wide it is.
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    raise InvalidArg("$", f"malformed, or nested deeper than {MAX_DEPTH} levels")


# --- Explaining what the decoders found -------------------------------------------------------

_SAFE_REASON = re.compile(
    r"Expected `|Integer value out of range|Number out of range|"
    r"Invalid (?:RFC3339|ISO8601|UUID|decimal|base64|duration|utf)"
)
_STEP = re.compile(r"\.([^.\[\]`]+)|\[(\d+)\]|\[(\.\.\.)\]")


def _explain(error: Exception, data: bytes, load: Callable[[bytes], Any]) -> tuple[str, str]:
    """The path and the reason; text of others is passed on only if it can't hold a value."""
    if isinstance(error, msgspec.ValidationError):
        return _explain_msgspec(error, data, load)
    if hasattr(error, "errors") and hasattr(error, "error_count"):
        return _explain_pydantic(error, "$")
    if isinstance(error, RecursionError):
        return "$", "nested too deeply"
    if isinstance(error, (msgspec.DecodeError, UnicodeDecodeError)):
        return "$", "not JSON; bytes of another kind need the annotation bytes"
    return "$", f"{{name}} refused it ({type(error).__name__})"


def _explain_msgspec(
    error: msgspec.ValidationError, data: bytes, load: Callable[[bytes], Any]
) -> tuple[str, str]:
    message, path, in_key = _split(error)
    steps = _steps(path)
    if steps is not None:
        path = _render(_resolve([*steps, None] if in_key else steps, error, data, load))
    cause = error.__cause__
    if hasattr(cause, "errors") and hasattr(cause, "error_count"):
        return _explain_pydantic(cause, path)
    if cause is not None:
        return path, f"{{name}} refused it ({type(cause).__name__})"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL):
        return _join(path, missing[1]), "required, but missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        return _join(path, unknown[1]), "not a known field"
    if message.startswith("Invalid enum value"):
        reason = "not one of the values allowed"
    elif _SAFE_REASON.match(message):
        reason = message[0].lower() + message[1:]
        reason = reason.replace("{", "{{").replace("}", "}}")
    else:
        reason = "does not fit {name}"
    return path, f"a key: {reason}" if in_key else reason


def _explain_pydantic(error: Any, path: str) -> tuple[str, str]:
    # Only the code of the error: its text may quote the input.
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    for step in first["loc"]:
        path = _join(path, step)
    code = re.sub(r"\W", "_", first["type"])
    return path, f"does not fit {{name}} ({code})"


def _split(error: Exception) -> tuple[str, str, bool]:
    """The message of msgspec, the path, and whether a key (not its value) is wrong."""
    message, found, path = str(error).rpartition(" - at `")
    if not found:
        return str(error), "$", False
    path = path.removesuffix("`")
    return message, path.removeprefix("key` in `"), path.startswith("key` in `")


def _steps(path: str) -> list[str | int | None] | None:
    steps: list[str | int | None] = []
    at = 1
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return None
        steps.append(step[1] or (int(step[2]) if step[2] else None))
        at = step.end()
    return steps


def _render(steps: Iterable[str | int | None]) -> str:
    path = "$"
    for step in steps:
        path = f"{path}[...]" if step is None else _join(path, step)
    return path


def _resolve(
    steps: list[str | int | None], error: Exception, data: bytes, load: Callable[[bytes], Any]
) -> list[str | int | None]:
    """Find the keys that msgspec's paths leave out, by halving the object until one key is left."""
    if None not in steps:
        return steps
    expected = _split(error)[1:]
    try:
        document = msgspec.json.decode(data)
    except ValueError:
        return steps
    for index, step in enumerate(steps):
        if step is not None:
            continue
        target = document
        for known in steps[:index]:
            try:
                target = target[known]
            except (KeyError, IndexError, TypeError):
                return steps
        if not isinstance(target, dict):
            return steps
        entries = list(target.items())
        while len(entries) > 1:
            half = entries[: len(entries) // 2]
            target.clear()
            target.update(half)
            try:
                load(msgspec.json.encode(document))
                failed = False
            except Exception as again:  # noqa: BLE001 - any error is an answer here
                failed = _split(again)[1:] == expected
            entries = half if failed else entries[len(half) :]
        target.clear()
        target.update(entries)
        steps = [*steps[:index], entries[0][0], *steps[index + 1 :]]
    return steps
