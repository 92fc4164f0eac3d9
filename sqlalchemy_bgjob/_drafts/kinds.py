"""What kind of value an arg holds: what JSON makes of it, and which fields an object has.

A kind is looked up by the value's class, and found out once for each class.

Pydantic and SQLAlchemy are recognised if the program has imported them, and never imported here:
without them the program has none of their objects.
"""

import dataclasses
import operator
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NoReturn
from uuid import UUID

import msgspec

from ..exceptions import InvalidArg

OPAQUE, STR, INT, FLOAT, DECIMAL, ENUM = range(6)
BYTES, MOMENT, PYDANTIC, UNSET, UNSUPPORTED, SEQUENCE, DICT, OBJECT = range(6, 14)

BUILTIN_KINDS: dict[type, int] = {
    type(None): OPAQUE,
    bool: OPAQUE,
    str: STR,
    int: INT,
    float: FLOAT,
    list: SEQUENCE,
    tuple: SEQUENCE,
    dict: DICT,
    set: SEQUENCE,
    frozenset: SEQUENCE,
    datetime: MOMENT,
    date: OPAQUE,
    time: MOMENT,
    timedelta: OPAQUE,
    UUID: OPAQUE,
    Decimal: DECIMAL,
    bytes: BYTES,
    bytearray: BYTES,
    memoryview: BYTES,
    msgspec.UnsetType: UNSET,
}
known_kinds = dict(BUILTIN_KINDS)
"""Those of all classes that were met so far."""
_MOST_CLASSES = 2_000
_BASES: Final[tuple[tuple[type | tuple[type, ...], int], ...]] = (
    (str, STR),
    (int, INT),
    (float, FLOAT),
    (Decimal, DECIMAL),
    ((datetime, time), MOMENT),
    ((date, timedelta, UUID), OPAQUE),
    (dict, DICT),
    ((list, tuple, set, frozenset), SEQUENCE),
)
"""The kinds of their subclasses; the first that fits counts."""
_getters: dict[type, Callable[[Any], tuple[Any, ...]]] = {}

NOT_FINITE = "NaN and infinities have no JSON form; use None or a string"


def kind_of(item: Any) -> int:
    """The kind of a value."""
    kind = known_kinds.get(type(item))
    return classify(item) if kind is None else kind


def classify(item: Any) -> int:
    """The kind of a value whose class was not met before."""
    # Bounded, for programs that create classes at run time.
    if len(known_kinds) > _MOST_CLASSES:
        known_kinds.clear()
        known_kinds.update(BUILTIN_KINDS)
        _getters.clear()
    kind = known_kinds[type(item)] = _find_out(item)
    return kind


def _find_out(item: Any) -> int:
    if _sqlalchemy_inspect(item) is not None:
        return UNSUPPORTED
    if isinstance(item, Enum):
        return ENUM
    if is_model(type(item)):
        return PYDANTIC
    for base, kind in _BASES:
        if isinstance(item, base):
            return kind
    cls = type(item)
    is_encoded = field_names(cls) is not None and _left_out(cls) is None
    return OBJECT if is_encoded else UNSUPPORTED


def field_names(cls: type) -> dict[str, str] | None:
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


def _left_out(cls: type) -> str | None:
    """A field of an attrs class that msgspec does not encode, as its name begins with ``_``."""
    names = (attribute.name for attribute in getattr(cls, "__attrs_attrs__", ()))
    return next((name for name in names if name.startswith("_")), None)


def field_values(item: Any) -> Sequence[Any]:
    """The values of an object's fields, in their order."""
    cls = type(item)
    getter = _getters.get(cls)
    if getter is None:
        names = tuple(field_names(cls) or ())
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
        return [getattr(item, name, None) for name in field_names(cls) or ()]


def is_model(cls: Any) -> bool:
    """Whether *cls* is a pydantic model; false where pydantic isn't used."""
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return base is not None and isinstance(cls, type) and issubclass(cls, base)


def _sqlalchemy_inspect(item: Any) -> Any:
    """SQLAlchemy's inspection of an object; None if the object is not SQLAlchemy's."""
    inspect = getattr(sys.modules.get("sqlalchemy"), "inspect", None)
    # Inspecting a class would configure its mappers, and a class is no value anyway.
    if inspect is None or isinstance(item, type):
        return None
    return inspect(item, raiseerr=False)


def refuse(item: Any, path: Callable[[], str]) -> NoReturn:
    """Refuse a value of the kind UNSUPPORTED, and say what to do instead."""
    refuse_foreign(item, path)
    name, field = type(item).__name__, _left_out(type(item))
    if field is None:
        raise InvalidArg(path(), f"{name} has no JSON form; pass plain data")
    raise InvalidArg(
        path(),
        f"{name} has the field {field!r}, and JSON would lack it; begin its name with a letter",
    )


def refuse_foreign(item: Any, path: "str | Callable[[], str]") -> None:
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
