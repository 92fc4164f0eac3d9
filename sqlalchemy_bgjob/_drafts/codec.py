"""A job's arg: from the caller's value to the bytes of the row and back, by an annotation.

* A value is walked before it is encoded (``storable``): JSON encoders are too lenient for a queue.
* An encoded arg is decoded before it is stored, so a mistake shows up in the caller's stack trace
  and not in a dead job.
* Only bytes are stored as they are; the content type tells them from JSON.
* Messages name paths, types and limits, never values.

msgspec does the work; pydantic takes over where an annotation is made of its models. Neither
pydantic nor SQLAlchemy is imported here: without them the program has none of their types.
"""

import re
import sys
import typing
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache, reduce
from inspect import Parameter
from typing import Any, NamedTuple, Union

import msgspec
import msgspec.inspect

from ..exceptions import InvalidArg
from ..settings import MAX_ARG_SIZE
from .dump import dump
from .explain import explain
from .kinds import is_model
from .paths import join
from .shapes import ANYTHING, members, model_names, shape_of
from .storable import MAX_DEPTH, check, size_problem

OCTET_STREAM = "application/octet-stream"

_BYTES_TYPES = (bytes, bytearray, memoryview)


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
        annotation: The annotation of the handler's arg, already resolved: a dataclass,
            msgspec.Struct, TypedDict, pydantic model, ``bytes``, or another type that msgspec
            knows. Any, ``object`` and ``Parameter.empty`` accept every value.
        takes: What the handler does with such a value, for messages.

    Raises:
        TypeError: The annotation can't be decoded from JSON.
    """

    def __init__(self, annotation: Any = Any, *, takes: str = "takes") -> None:
        self._takes = takes
        if isinstance(annotation, str):
            raise TypeError(f"annotation {annotation!r} is a string; resolve it first")
        parts = members(annotation)
        self._untyped = any(m is Any or m is object or m is Parameter.empty for m in parts)
        if self._untyped:
            annotation, parts = Any, [Any]
        self.annotation = annotation
        self._name = _name(annotation)
        self._raw_type = next((m for m in parts if m in _BYTES_TYPES), None)
        rest = [m for m in parts if m not in _BYTES_TYPES]
        self._only_raw = self._raw_type is not None and all(m is type(None) for m in rest)
        self._load: Callable[[bytes], Any] = _decoder(
            # msgspec would read these bytes from a base64 string, and allows no str beside them.
            annotation if self._raw_type is None or not rest else Union[tuple(rest)]  # noqa: UP007
        )
        self._shape = ANYTHING if self._only_raw else shape_of(annotation)
        # An arg of exactly this class, with no other object inside, has no unread key.
        named = [m for m in rest if m is not type(None)]
        self._exact = named[0] if len(named) == 1 and self._shape.is_plain() else None
        self.allows_none: bool = type(None) in parts or self._loads_null()

    def encode(self, arg: Any, *, max_size: int = MAX_ARG_SIZE) -> Encoded:
        """The bytes to store for *arg*, which :meth:`decode` is sure to read.

        Raises:
            InvalidArg: The value can't be stored, or does not fit the annotation.
        """
        if arg is None:
            if not self.allows_none:
                raise InvalidArg("$", f"None given, but the handler {self._takes} {self._name}")
            return Encoded(None, None)
        kind = _special.get(type(arg))
        if kind is None:
            kind = _classify(type(arg))
        if kind == _RAW:
            if self._raw_type is None and not self._untyped:
                got = type(arg).__name__
                raise InvalidArg("$", f"{got} given, but the handler {self._takes} {self._name}")
            size = arg.nbytes if isinstance(arg, memoryview) else len(arg)
            _check_size(size, max_size)
            return Encoded(bytes(arg), OCTET_STREAM)
        if self._only_raw:
            got = type(arg).__name__
            raise InvalidArg(
                "$", f"{got} given, but the handler {self._takes} {self._name}; encode it"
            )
        exact = type(arg) is self._exact
        if kind == _PYDANTIC:
            arg = dump(arg, "$")
        check(arg, max_size=max_size)
        data = _encode(arg)
        _check_size(len(data), max_size)
        if not self._untyped:
            self._decode_json(data)
            if self._shape is not ANYTHING and not exact:
                self._check_keys(data)
        return Encoded(data, None)

    def decode(
        self, data: bytes | None, content_type: str | None = None, *, max_size: int = MAX_ARG_SIZE
    ) -> Any:
        """Decode the bytes of a row to the handler's arg.

        An annotation of ``bytes`` gets them as they are, whatever the content type says.

        Raises:
            InvalidArg: The bytes exceed *max_size*, are malformed, or don't fit the annotation.
        """
        if data is None:
            if not self.allows_none:
                raise InvalidArg(
                    "$", f"there is no arg, but the handler {self._takes} {self._name}"
                )
            return None
        _check_size(len(data), max_size)
        if self._only_raw or not _is_json(content_type):
            if self._untyped:
                return bytes(data)
            if self._raw_type is None:
                # The content type comes from the row's headers, so the message does not show it.
                raise InvalidArg(
                    "$", f"stored as bytes, but the handler {self._takes} {self._name}"
                )
            return self._raw_type(data)
        _check_depth(data)
        return self._decode_json(data)

    def _decode_json(self, data: bytes) -> Any:
        try:
            return self._load(data)
        except MemoryError:
            raise
        except Exception as error:
            failure = error
        # Outside the except block, so that no traceback shows the cause, which may hold values.
        path, reason = explain(failure)
        if path == "$" and "{name}" not in reason:
            reason += "; the handler takes {name}"
        raise InvalidArg(path, reason.format(name=self._name))

    def _check_keys(self, data: bytes) -> None:
        """Refuse keys that decoding would silently drop."""
        steps = self._shape.unread(msgspec.json.decode(data))
        if steps is not None:
            reason = f"{self._name} has no such field, so the handler would not get it; take it out"
            raise InvalidArg(reduce(join, steps, "$"), reason)

    def _loads_null(self) -> bool:
        try:
            self._load(b"null")
        except Exception:
            return False
        return True


def fields(annotation: Any) -> Fields | None:
    """The fields of an object-like annotation (or of one that may also be None), else None.

    Names are those in JSON: a struct's ``rename`` and a model's aliases are applied.
    """
    parts = [part for part in members(annotation) if part is not type(None)]
    if len(parts) != 1:
        return None
    (member,) = parts
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


def _pydantic_fields(model: Any) -> Fields:
    known: set[str] = set()
    required: set[str] = set()
    for _, names, field in model_names(model):
        known.update(names)
        if field.is_required():
            required.update(names[:1])
    return Fields(frozenset(known), frozenset(required))


# --- Encoding and decoding --------------------------------------------------------------------


def _enc_hook(item: Any) -> Any:
    # Subclasses that msgspec does not know are stored as their base class, as json.dumps does.
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
    if is_model(type(item)):
        return dump(item, "$")
    raise TypeError(type(item).__name__)


_encoder = msgspec.json.Encoder(enc_hook=_enc_hook)


_PLAIN, _RAW, _PYDANTIC = range(3)
_MOST_TYPES = 2_000
_special: dict[type, int] = {str: _PLAIN, int: _PLAIN, dict: _PLAIN, list: _PLAIN}


def _classify(kind: type) -> int:
    """The kind of a type, looked up once: most args are of the same few types."""
    found = _PLAIN
    if issubclass(kind, _BYTES_TYPES):
        found = _RAW
    elif hasattr(kind, "__pydantic_serializer__"):
        found = _PYDANTIC
    if len(_special) < _MOST_TYPES:  # some applications create classes at run time
        _special[kind] = found
    return found


def _encode(arg: Any) -> bytes:
    try:
        return _encoder.encode(arg)
    except (MemoryError, InvalidArg):
        raise
    except Exception as error:
        failure = type(error).__name__
    raise InvalidArg("$", f"{type(arg).__name__} can't be encoded as JSON ({failure})")


def _dec_hook(cls: type, item: Any) -> Any:
    if cls is object:
        return item
    # Through JSON again: a strict model takes a datetime from a JSON string, not from a str.
    return _nested_adapter(cls)(msgspec.json.encode(item))


def _decoder(annotation: Any) -> Callable[[bytes], Any]:
    """The function that decodes JSON to the annotation; a TypeError if there can be none."""
    parts = [part for part in members(annotation) if part is not type(None)]
    if any(hasattr(part, "__pydantic_validator__") for part in parts):
        for part in parts:
            _refuse_mapped(part, annotation)
        return _adapter(annotation)
    try:
        info = msgspec.inspect.type_info(annotation)
        decoder: Any = msgspec.json.Decoder(annotation, dec_hook=_dec_hook)
    except NameError as error:
        raise TypeError(
            f"arg annotation {_name(annotation)}: {error}; "
            f"define the types of its fields at the top level of its module"
        ) from None
    except TypeError as error:
        if "pydantic" not in sys.modules:
            raise TypeError(f"arg annotation {_name(annotation)}: {error}") from error
        # msgspec can't tell the models of a union apart; pydantic can.
        try:
            return _adapter(annotation)
        except Exception:
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


# Cached: building an adapter costs far more than using it, and the hook gets only the class.
_nested_adapter = lru_cache(maxsize=256)(_adapter)


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


def _name(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__.rpartition("<locals>.")[2]
    return str(annotation).replace("typing.", "")


def _is_json(content_type: object) -> bool:
    if isinstance(content_type, str):
        return content_type.partition(";")[0].strip() == "application/json"
    return content_type is None  # SQL may have written a number


def _check_size(size: int, max_size: int) -> None:
    if size > max_size:
        raise InvalidArg("$", f"{size} bytes, {size_problem(max_size)}")


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before a parser recurses: its own limit differs by Python version."""
    if len(data) <= MAX_DEPTH or data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    # Each round takes the innermost level away, however wide it is.
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    raise InvalidArg("$", f"malformed, or nested deeper than {MAX_DEPTH} levels")
