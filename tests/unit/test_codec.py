"""Args: what is refused at enqueue, what comes back, and that no message holds a value."""

import enum
import math
import pickle
import re
import subprocess
import sys
import traceback
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from inspect import Parameter
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    registry,
    relationship,
)
from sqlmodel import Field, SQLModel

from sqlalchemy_bgjob._drafts.codec import Codec, Encoded, Fields, fields
from sqlalchemy_bgjob.exceptions import BGJobError, InvalidArg
from sqlalchemy_bgjob.settings import MAX_ARG_SIZE

SECRET = "hunter2"
ANY = Codec(Any)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Item:
    price: float
    name: str = "x"
    colour: Colour = Colour.RED


@dataclass
class Order:
    items: list[Item]
    by_name: dict[str, Item] = field(default_factory=dict)
    note: str | None = None


@dataclass
class Picky:
    code: str

    def __post_init__(self) -> None:
        if self.code == SECRET:
            raise ValueError(f"{self.code} is wrong")
        if self.code == SECRET * 2:
            raise KeyError(self.code)


class Struct(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    order_id: int
    sent_at: datetime | msgspec.UnsetType = msgspec.UNSET
    nodes: "list[Struct]" = []


class Receipt(TypedDict):
    order_id: int
    email: NotRequired[str]


class Line(pydantic.BaseModel):
    price: float
    ordered_at: datetime | None = None


class Invoice(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    number: int = pydantic.Field(alias="invoiceNumber")
    lines: dict[str, Line] = {}
    tags: set[str] = set()

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> float:
        return sum(line.price for line in self.lines.values())


@dataclass
class Mixed:
    line: Line
    more: list[Line] = field(default_factory=list)


def refused(
    value: Any, path: str, reason: str = "", *, codec: Codec = ANY, max_size: int = MAX_ARG_SIZE
) -> InvalidArg:
    """The refusal of a value at enqueue, at this path, without the secret in any text of it."""
    with pytest.raises(InvalidArg) as caught:
        codec.encode(value, max_size=max_size)
    return _checked(caught.value, path, reason)


def undecodable(codec: Codec, data: bytes | None, path: str, reason: str = "") -> InvalidArg:
    with pytest.raises(InvalidArg) as caught:
        codec.decode(data, None)
    return _checked(caught.value, path, reason)


def _checked(error: InvalidArg, path: str, reason: str) -> InvalidArg:
    assert error.path == path
    assert reason in error.reason
    assert error.path in str(error)
    assert error.reason in str(error)
    shown = "".join(traceback.format_exception_only(error)) + repr(error)
    assert SECRET not in shown
    # Nor in what a traceback, or a tool that walks the chain, would print.
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


def round_trip(codec: Codec, value: Any) -> Any:
    return codec.decode(*codec.encode(value))


# --- The error -------------------------------------------------------------------------------


def test_invalid_arg_is_a_value_error_with_its_data() -> None:
    error = InvalidArg("$.a", "no good")

    assert isinstance(error, BGJobError)
    assert isinstance(error, ValueError)
    assert str(error) == "invalid arg at $.a: no good"


def test_invalid_arg_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(InvalidArg("$.a", "no good")))

    assert (error.path, error.reason) == ("$.a", "no good")


# --- Bytes, None and JSON ---------------------------------------------------------------------


def test_none_is_no_data() -> None:
    assert ANY.encode(None) == Encoded(None, None)
    assert Codec(Order | None).encode(None) == (None, None)
    assert ANY.decode(None, None) is None
    assert Codec(Line | None).decode(None, None) is None


@pytest.mark.parametrize("annotation", [Order, Line, bytes, int, list[int], Struct, Receipt])
def test_none_is_refused_where_the_annotation_has_none(annotation: Any) -> None:
    codec = Codec(annotation)

    refused(None, "$", "None given", codec=codec)
    undecodable(codec, None, "$", "no arg")


@pytest.mark.parametrize("annotation", [Any, object, Parameter.empty, Any | None, bytes])
@pytest.mark.parametrize("value", [b"", b"\x00\xff{", bytearray(b"ab"), memoryview(b"abcd")[::2]])
def test_bytes_are_stored_untouched(annotation: Any, value: Any) -> None:
    codec = Codec(annotation)

    encoded = codec.encode(value)

    assert encoded == (bytes(value), "application/octet-stream")
    assert codec.decode(*encoded) == bytes(value)


def test_bytes_are_not_copied() -> None:
    value = b"x" * 100

    assert ANY.encode(value).data is value


@pytest.mark.parametrize("annotation", [bytes, bytes | None, bytearray, NewType("Blob", bytes)])
def test_a_handler_of_bytes_gets_them_whatever_the_content_type(annotation: Any) -> None:
    codec = Codec(annotation)

    assert codec.decode(b'{"a": 1}', None) == b'{"a": 1}'
    assert codec.decode(b"\xff", "application/x-protobuf") == b"\xff"


def test_bytes_come_back_as_the_type_of_the_annotation() -> None:
    assert type(Codec(bytearray).decode(b"a", None)) is bytearray
    assert type(Codec(memoryview).decode(b"a", None)) is memoryview


def test_a_union_with_bytes_goes_by_the_content_type() -> None:
    codec = Codec(bytes | Order)

    assert round_trip(codec, b"{}") == b"{}"
    assert round_trip(codec, Order([])) == Order([])


@pytest.mark.parametrize("annotation", [Order, str, list[bytes], Line])
def test_bytes_for_a_typed_handler_are_refused(annotation: Any) -> None:
    codec = Codec(annotation)

    refused(SECRET.encode(), "$", "bytes given", codec=codec)
    with pytest.raises(InvalidArg, match="stored as bytes"):
        codec.decode(b"[]", "application/octet-stream")


def test_anything_but_bytes_for_a_handler_of_bytes_is_refused() -> None:
    refused(SECRET, "$", "str given, but the handler takes bytes", codec=Codec(bytes))


def test_json_has_no_content_type() -> None:
    assert ANY.encode({"a": [1, "é"]}) == ('{"a":[1,"é"]}'.encode(), None)
    assert ANY.decode(b' {"a": 1}', "application/json; charset=utf-8") == {"a": 1}


# --- What has no JSON form --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("-inf")])
def test_nan_and_infinities_are_refused(bad: Any) -> None:
    refused({"items": [1, 2, 3, {"price": bad}]}, "$.items[3].price", "NaN and infinities")


@attrs.define
class Parcel:
    weight: int
    _label: str = "none"


@pytest.mark.parametrize("annotation", [Any, Parcel, list[Parcel]])
def test_a_private_field_of_attrs_is_refused(annotation: Any) -> None:
    """The encoder leaves such a field out, and the handler would get its default."""
    arg = [Parcel(2, "x")] if annotation == list[Parcel] else Parcel(2, "x")
    where = "$[0]" if isinstance(arg, list) else "$"
    with pytest.raises(InvalidArg, match="Parcel has the field '_label'") as refusal:
        Codec(annotation).encode(arg)
    assert refusal.value.path == where


class WrittenAsPrice(pydantic.BaseModel):
    cost: int = pydantic.Field(default=0, serialization_alias="price")


class ReadFromPrice(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")
    cost: int = pydantic.Field(default=0, validation_alias="price")


class ReadFromEither(pydantic.BaseModel):
    cost: int = pydantic.Field(
        default=0,
        validation_alias=pydantic.AliasChoices("price", pydantic.AliasPath("prices", 0)),
        serialization_alias="costs",
    )


@pydantic.dataclasses.dataclass
class WrittenByDataclass:
    cost: int = pydantic.Field(default=0, serialization_alias="price")


class Basket(pydantic.BaseModel):
    article: WrittenAsPrice


@pytest.mark.parametrize(
    ("arg", "what"),
    [
        (WrittenAsPrice(cost=3), "WrittenAsPrice.cost as 'price'"),
        (ReadFromPrice.model_validate({"price": 3}), "ReadFromPrice.cost as 'cost'"),
        (ReadFromEither.model_validate({"price": 3}), "ReadFromEither.cost as 'costs'"),
        (WrittenByDataclass(cost=3), "WrittenByDataclass.cost as 'price'"),
        (Basket(article=WrittenAsPrice(cost=3)), "WrittenAsPrice.cost as 'price'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_field_that_is_not_read_back_is_refused(arg: Any, what: str) -> None:
    """Pydantic reads and writes by different aliases: the handler would get the default."""
    with pytest.raises(InvalidArg, match=re.escape(f"writes {what}")):
        Codec(type(arg)).encode(arg)


class EitherName(pydantic.BaseModel):
    cost: int = pydantic.Field(
        default=0,
        validation_alias=pydantic.AliasChoices("price", "cost"),
        serialization_alias="price",
    )


def test_an_alias_that_is_read_back_is_accepted() -> None:
    codec, given = Codec(EitherName), EitherName.model_validate({"price": 3})
    assert codec.decode(codec.encode(given).data) == given


def test_nan_is_refused_where_null_would_fit() -> None:
    """An encoder that writes null for NaN would pass for None, and nobody would notice."""

    @dataclass
    class Optional:
        price: float | None

    refused(Optional(math.nan), "$.price", "NaN", codec=Codec(Optional))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (f"{SECRET}\0", "$"),
        ({"a": [f"{SECRET}\0"]}, "$.a[0]"),
        ({"a": {"b\0": 1}}, '$.a["b\\u0000"]'),
        ({1: 1, "b\0": 1}, '$["b\\u0000"]'),
    ],
)
def test_nul_is_refused(value: Any, path: str) -> None:
    refused(value, path, "NUL character")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (f"{SECRET}\ud800", "$"),
        ([f"{SECRET}\udfff"], "$[0]"),
        ({"a": {"b\ud800": 1}}, '$.a["b\\ud800"]'),
        (dict.fromkeys(["\ud83d", "\ude00"]), '$["\\ud83d"]'),
    ],
)
def test_lone_surrogates_are_refused(value: Any, path: str) -> None:
    error = refused(value, path, "lone surrogate")

    str(error).encode()


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "null NaN", "\U0001f600", "\x01\x7f\u2028"])
def test_text_that_only_looks_bad_is_stored(text: str) -> None:
    assert round_trip(ANY, {text: text}) == {text: text}


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, 10**5000], ids=["over", "under", "5,000 digits"]
)
def test_ints_beyond_64_bits_are_refused(value: int) -> None:
    error = refused({"n": [value]}, "$.n[0]", "64 bits")

    assert "-9223372036854775808 to 18446744073709551615" in error.reason


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63)])
def test_ints_of_64_bits_are_stored(value: int) -> None:
    assert round_trip(ANY, value) == value


@pytest.mark.parametrize(
    ("key", "step"),
    [
        (1.5, ".float"),
        (None, ".NoneType"),
        (True, ".True"),
        ((1, SECRET), ".tuple"),
        (SECRET.encode(), ".bytes"),
        (date(2026, 1, 1), ".date"),
        (Decimal(1), ".Decimal"),
        (2**64, ".int"),
        (10**5000, ".int"),
    ],
    ids=lambda step: step if isinstance(step, str) else "",
)
def test_keys_without_a_json_form_are_refused(key: Any, step: str) -> None:
    refused({"a": {key: 1}}, f"$.a{step}", "a key")


def test_keys_that_become_strings_are_stored() -> None:
    key = uuid.UUID(int=7)

    assert round_trip(ANY, {1: "a"}) == {"1": "a"}
    assert round_trip(ANY, {Colour.RED: 1, Level.LOW: 2}) == {"red": 1, "1": 2}
    assert round_trip(Codec(dict[uuid.UUID, int]), {key: 1}) == {key: 1}
    assert round_trip(Codec(dict[int, int]), {1: 1}) == {1: 1}


def test_keys_that_become_the_same_string_are_refused() -> None:
    """Both would be written, and one of them would be lost when read."""
    refused({"a": {1: "x", "1": "y"}}, '$.a["1"]', "same JSON form")


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_limited() -> None:
    assert round_trip(ANY, nested(100)) == nested(100)

    refused(nested(101), "$" + "[0]" * 100, "deeper than 100 levels")
    refused(nested(100_000), "$" + "[0]" * 100, "deeper than 100 levels")


def test_circular_references_are_refused() -> None:
    a: dict[str, Any] = {"b": [1, {}]}
    a["b"][1]["again"] = a
    order = Order([])
    order.items.append(order)  # type: ignore[arg-type]

    refused(a, "$.b[1].again", "circular reference")
    refused(order, "$.items[0]", "circular reference", codec=Codec(Order))


def test_a_value_shared_many_times_is_stored_many_times() -> None:
    shared = {"a": 1}

    assert round_trip(ANY, [shared, shared]) == [shared, shared]


def test_the_walk_ends_before_memory_does() -> None:
    """Thirty lists that hold each other twice have a billion leaves."""
    value: Any = "x"
    for _ in range(30):
        value = [value, value]

    refused(value, "$", "more than the 1048576 bytes allowed")
    refused(["x" * MAX_ARG_SIZE] * 100_000, "$", "more than the 1048576 bytes allowed")
    refused([b"x" * MAX_ARG_SIZE] * 100_000, "$", "more than the 1048576 bytes allowed")


@pytest.mark.parametrize("value", ["x" * 9, list(range(10)), b"x" * 11, {"aaaa": "bbb"}, ["é" * 4]])
def test_size_is_limited(value: Any) -> None:
    data = ANY.encode(value).data
    assert data is not None
    size = len(data)
    assert ANY.encode(value, max_size=size).data == data

    refused(value, "$", f"more than the {size - 1} bytes", max_size=size - 1)


def test_the_default_limit_is_a_mebibyte() -> None:
    assert MAX_ARG_SIZE == 1_048_576
    assert round_trip(ANY, "x" * (MAX_ARG_SIZE - 2))

    refused("x" * (MAX_ARG_SIZE - 1), "$", "1048577 bytes, more than the 1048576 bytes allowed")
    refused(b"x" * (MAX_ARG_SIZE + 1), "$", "1048577 bytes, more than the 1048576 bytes allowed")


def generator() -> Iterator[str]:
    yield SECRET


@pytest.mark.parametrize(
    "bad",
    [
        generator(),
        generator,
        lambda: SECRET,
        object(),
        int,
        Order,
        1j,
        range(3),
        {SECRET: 1}.keys(),
        msgspec.Raw(b"[" + SECRET.encode()),
        msgspec.UNSET,
        ValueError(SECRET),
        ...,
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_unsupported_types_are_refused(bad: Any) -> None:
    refused({"items": ({"value": bad},)}, "$.items[0].value")


def test_an_enum_of_something_else_is_refused() -> None:
    class Odd(enum.Enum):
        A = (1, SECRET)
        B = math.nan
        C = f"{SECRET}\0"

    refused([Odd.A], "$[0]", "an Enum whose value")
    refused([Odd.B], "$[0]", "NaN")
    refused([Odd.C], "$[0]", "NUL")


def test_a_utc_offset_with_seconds_is_refused() -> None:
    """RFC 3339 has none, and an encoder that rounds it moves the moment."""
    odd = timezone(timedelta(seconds=30))

    refused([datetime(1900, 1, 1, tzinfo=odd)], "$[0]", "UTC offset")
    assert round_trip(Codec(datetime), datetime(1900, 1, 1, tzinfo=UTC)) == datetime(
        1900, 1, 1, tzinfo=UTC
    )


def test_odd_keys_are_quoted_and_cut_in_paths() -> None:
    refused({'a b"': math.nan}, '$["a b\\""]')
    refused({"k" * 5_000: math.nan}, '$["' + "k" * 64 + '..."]')


# --- SQLAlchemy -------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    letters: Mapped[list["Letter"]] = relationship()


class Letter(MappedAsDataclass, Base):
    __tablename__ = "letter"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))


@dataclass
class Imperative:
    id: int


registry().map_imperatively(
    Imperative,
    Letter.__table__.to_metadata(registry().metadata),  # type: ignore[attr-defined]
    include_properties=["id"],
)


@pytest.mark.parametrize(
    "instance",
    [User(id=1, name=SECRET), Letter(id=1, user_id=1), Imperative(id=1)],
    ids=lambda instance: type(instance).__name__,
)
@pytest.mark.parametrize("codec", [ANY, Codec(Order), Codec(Line)], ids=["any", "typed", "model"])
def test_orm_instances_are_refused_at_any_depth(instance: Any, codec: Codec) -> None:
    name = type(instance).__name__

    refused(instance, "$", f"{name} is an ORM instance; pass the primary key", codec=codec)
    refused({"a": [instance]}, "$.a[0]", "pass the primary key", codec=codec)
    refused(Order([instance]), "$.items[0]", "pass the primary key", codec=codec)


def test_relationships_are_refused() -> None:
    user = User(id=1, name=SECRET, letters=[Letter(id=1, user_id=1)])

    refused(user.letters, "$[0]", "pass the primary key")


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)


class HeroName(SQLModel):
    name: str


def test_sqlmodel_tables_are_refused_and_its_other_models_taken() -> None:
    class Open(pydantic.BaseModel):
        value: Any

    refused(Hero(id=1), "$", "Hero is an ORM instance; pass the primary key")
    refused([Hero(id=1)], "$[0]", "Hero is an ORM instance; pass the primary key")
    refused(Open(value=[Hero(id=1)]), "$", "Open holds an ORM instance", codec=Codec(Open))
    assert round_trip(Codec(HeroName), HeroName(name="a")) == HeroName(name="a")
    with pytest.raises(TypeError, match="Hero is an ORM class"):
        Codec(Hero)


@pytest.mark.parametrize(
    "expression", [User.name, func.now(), select(User), User.id == 1, User.__table__]
)
def test_sql_expressions_are_refused(expression: Any) -> None:
    refused(expression, "$", "SQL construct")
    refused({"at": expression}, "$.at", "SQL construct")


@pytest.mark.parametrize("annotation", [User, Letter | None, list[Letter], Annotated[User, 1]])
def test_an_orm_class_as_annotation_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"(User|Letter) is an ORM class; take the primary key"):
        Codec(annotation)


@pytest.mark.parametrize("annotation", [Callable[[], int], list[Iterator[int]], type, "Order"])
def test_an_annotation_that_nothing_decodes_to_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match="annotation"):
        Codec(annotation)


# --- Fitting the annotation -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value", "path", "reason"),
    [
        (Order, {"items": [{"price": 1}] * 3 + [{"price": SECRET}]}, "$.items[3].price", "float"),
        (Order, Order([Item(SECRET)]), "$.items[0].price", "expected `float`, got `str`"),  # type: ignore[arg-type]
        (Order, {"items": [{}]}, "$.items[0].price", "required, but missing"),
        (Order, {}, "$.items", "required, but missing"),
        (Order, [SECRET], "$", "expected `object`, got `array`; the handler takes Order"),
        (Order, {"items": [{"price": 1, "colour": SECRET}]}, "$.items[0].colour", "not one of"),
        (Literal["a", "b"], SECRET, "$", "not one of"),
        (Picky, {"code": SECRET}, "$", "Picky refused it (ValueError)"),
        (Picky, {"code": SECRET * 2}, "$", "Picky refused it (KeyError)"),
        (Struct, {"orderId": 1, "extra": SECRET}, "$.extra", "not a known field"),
        (Struct, {"orderId": 1, "nodes": [{"orderId": SECRET}]}, "$.nodes[0].orderId", "`int`"),
        (Receipt, {"email": SECRET}, "$.order_id", "required, but missing"),
        (dict[str, list[int]], {"a": [1], "b": [1, SECRET]}, "$[...][1]", "`int`"),
        (dict[uuid.UUID, int], {"a b": 1}, "$[...]", "a key: invalid UUID"),
        (list[uuid.UUID], [SECRET], "$[0]", "invalid UUID"),
        (tuple[int, str], [1, 2], "$[1]", "expected `str`"),
        (Annotated[int, msgspec.Meta(le=10)], 11, "$", "`int` <= 10"),
        (Annotated[str, msgspec.Meta(pattern="^{a}$")], SECRET, "$", "^{a}$"),
        (Line, {"price": SECRET}, "$.price", "does not fit Line (float_parsing)"),
        (Line, {}, "$.price", "missing"),
        (Invoice, {"invoiceNumber": 1, "lines": {"b c": {}}}, '$.lines["b c"].price', "(missing)"),
        (Mixed, {"line": {"price": 1}, "more": [{"price": SECRET}]}, "$.more[0].price", "float"),
        (list[Line | Invoice], [SECRET], "$[0].Line", "model_type"),
        (int, 1.5, "$", "`int`"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(
    annotation: Any, value: Any, path: str, reason: str
) -> None:
    """Found in the caller's stack trace, and not by the worker."""
    codec = Codec(annotation)

    refused(value, path, reason, codec=codec)
    undecodable(codec, ANY.encode(value).data, path, reason)


def test_a_path_leads_through_a_dict_without_its_key() -> None:
    value = {"k": Item(1), "bad": Item(SECRET)}  # type: ignore[arg-type]

    refused(Order([], by_name=value), "$.by_name[...].price", "`float`", codec=Codec(Order))


def test_a_dict_that_converts_is_taken() -> None:
    assert round_trip(Codec(Order), {"items": [{"price": 1}]}) == Order([Item(1.0)])
    assert round_trip(Codec(Line), {"price": 1}) == Line(price=1)


# --- Round trips ------------------------------------------------------------------------------


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Order, Order([Item(1.5, "n", Colour.BLUE)], {"a": Item(2.0)}, "é")),
        (Struct, Struct(1)),
        (Struct, Struct(1, datetime(2026, 1, 1, tzinfo=UTC), [Struct(2)])),
        (Receipt, {"order_id": 1}),
        (Point, Point(1, 2)),
        (set[int], {1, 2}),
        (frozenset[str], frozenset({"a"})),
        (list[bytes], [b"\x00\xff"]),
        (timedelta, timedelta(days=-1, microseconds=1)),
        (time, time(1, 2, tzinfo=UTC)),
        (dict[str, object], {"a": [None]}),
        (int | str, "a"),
        (Line, Line(price=1, ordered_at=datetime(2026, 1, 1, tzinfo=UTC))),
        (Line | None, Line(price=1)),
        (list[Line | Order], [Line(price=1), Order([])]),
        (Mixed, Mixed(Line(price=1), [Line(price=2, ordered_at=datetime(2026, 1, 1, tzinfo=UTC))])),
        (list[Line], [Line(price=1)]),
        (pydantic.RootModel[list[int]], pydantic.RootModel[list[int]]([1])),
    ],
)
def test_typed_values_come_back(annotation: Any, value: Any) -> None:
    came_back = round_trip(Codec(annotation), value)

    assert came_back == value
    assert type(came_back) is type(value)


def test_a_strict_model_with_aliases_and_computed_fields() -> None:
    invoice = Invoice(invoiceNumber=1, lines={"a": Line(price=2)}, tags={"x"})

    assert round_trip(Codec(Invoice), invoice) == invoice
    assert round_trip(Codec(list[Invoice]), [invoice]) == [invoice]


def test_a_pydantic_dataclass_comes_back() -> None:
    @pydantic.dataclasses.dataclass
    class Small:
        n: int = pydantic.Field(alias="N")
        line: Line | None = None

    assert round_trip(Codec(Small), Small(N=1, line=Line(price=1))) == Small(
        N=1, line=Line(price=1)
    )
    refused({"N": SECRET}, "$.N", "int_parsing", codec=Codec(Small))


def test_models_nested_in_plain_data_are_dumped() -> None:
    value = {"a": [Line(price=1, ordered_at=datetime(2026, 1, 1, tzinfo=UTC))]}

    assert ANY.encode(value).data == b'{"a":[{"price":1.0,"ordered_at":"2026-01-01T00:00:00Z"}]}'


def test_what_a_model_holds_is_checked_too() -> None:
    class Open(pydantic.BaseModel):
        value: Any

    user = User(id=1, name=SECRET)

    refused([Line(price=math.nan)], "$[0].price", "NaN")
    refused([Open(value={"a": [math.nan]})], "$[0]", "Open holds NaN or an infinity")
    refused(Open(value=[Line(price=math.inf)]), "$.value[0].price", "NaN", codec=Codec(Open))
    refused([Open(value=f"{SECRET}\0")], "$[0].value", "NUL")
    refused([Open(value="\ud800")], "$[0].value", "surrogate")
    refused([Open(value=user)], "$[0]", "Open can't be dumped as JSON")
    refused([Line.model_construct(price=SECRET)], "$[0].price", codec=Codec(list[Line]))


def test_a_model_that_writes_infinity_as_a_string_may() -> None:
    class Bound(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ser_json_inf_nan="strings")

        limit: float
        note: str | None = None

    class Shown(pydantic.BaseModel):
        limit: float

        @pydantic.field_serializer("limit")
        def show(self, limit: float) -> str:
            return str(limit)

    bound, shown = Bound(limit=math.inf), Shown(limit=math.inf)

    assert round_trip(Codec(Shown), shown) == shown
    # As data of Python, pydantic leaves the infinity in place whatever the setting says.
    refused(bound, "$.limit", "NaN and infinities", codec=Codec(Bound))


def test_a_model_may_exclude_a_field_that_points_back() -> None:
    class Node(pydantic.BaseModel):
        children: "list[Node]" = []
        parent: "Node | None" = pydantic.Field(default=None, exclude=True)

    root = Node()
    root.children.append(Node(parent=root))

    assert ANY.encode(root).data == b'{"children":[{"children":[]}]}'


def test_a_masked_secret_is_refused() -> None:
    """It would be stored as asterisks, and the secret lost for good."""

    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr

    login = Login(password=pydantic.SecretStr(SECRET))

    refused(login, "$", "a secret that pydantic masks", codec=Codec(Login))
    refused({"a": [login]}, "$.a[0]", "a secret that pydantic masks")


def test_subclasses_are_stored_as_their_base() -> None:
    class Str(str):
        __slots__ = ()

    class Int(int):
        pass

    class Float(float):
        pass

    class Moment(datetime):
        pass

    class Money(Decimal):
        pass

    class Span(timedelta):
        pass

    pair = namedtuple("pair", "a b")  # noqa: PYI024 - what users have
    value = [
        Str("a"),
        Int(1),
        Float(1.5),
        Moment(2026, 1, 1, 2, tzinfo=UTC),
        Money("1.10"),
        Span(seconds=1),
        pair(1, 2),
        OrderedDict({Str("k"): Level.LOW}),
    ]

    expected = b'["a",1,1.5,"2026-01-01T02:00:00Z","1.10","PT1S",[1,2],{"k":1}]'
    assert ANY.encode(value).data == expected
    refused([Float("nan")], "$[0]", "NaN")
    refused([Str(f"{SECRET}\0")], "$[0]", "NUL")


safe_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | safe_text,
    lambda children: st.lists(children) | st.dictionaries(safe_text, children),
)


@given(json_values)
def test_json_values_come_back(value: Any) -> None:
    assert round_trip(ANY, value) == value


@dataclass
class Rich:
    at: datetime
    day: date
    key: uuid.UUID
    amount: Decimal
    colour: Colour
    span: timedelta
    blob: bytes
    scores: dict[int, float | None]
    tags: frozenset[str]
    rest: Any = None


offsets = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
rich_values = st.builds(
    Rich,
    at=st.datetimes(timezones=st.none() | offsets),
    day=st.dates(),
    key=st.uuids(),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(Colour),
    span=st.timedeltas(timedelta(days=-(10**6)), timedelta(days=10**6)),
    blob=st.binary(),
    scores=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    tags=st.frozensets(safe_text),
    rest=json_values,
)


@given(rich_values)
def test_dataclasses_come_back(value: Rich) -> None:
    assert round_trip(Codec(Rich), value) == value


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.decimals()
    | st.binary()
    | st.datetimes()
    | st.sampled_from([Colour.RED, Line(price=1), Item(1), object(), msgspec.UNSET, User()]),
    lambda children: (
        st.lists(children)
        | st.tuples(children)
        | st.dictionaries(st.text() | st.integers() | st.floats() | st.none(), children)
        | st.builds(Item, price=children, name=children)
        | st.builds(Order, items=children, note=children)
    ),
)
CODECS = [ANY, Codec(Order), Codec(Rich), Codec(Line), Codec(list[Item]), Codec(dict[str, float])]


@given(anything, st.sampled_from(CODECS))
def test_only_what_was_encoded_decodes(value: Any, codec: Codec) -> None:
    try:
        encoded = codec.encode(value)
    except InvalidArg as error:
        assert error.path.startswith("$")  # noqa: PT017 - one of two good ends
        return

    came_back = codec.decode(*encoded)
    assert encoded.data is None or b"\0" not in encoded.data or encoded.content_type is not None
    assert codec.encode(came_back) == encoded or codec is not ANY


# --- Decoding what others wrote ---------------------------------------------------------------

MALFORMED = {
    "empty": b"",
    "truncated": b'{"a":',
    "trailing": b"1 2",
    "not json": SECRET.encode(),
    "not utf-8": b'"\xff"',
    "surrogate": b'"\\ud800"',
    "encoded surrogate": b'"\xed\xa0\x80"',
    "byte order mark": b"\xef\xbb\xbf1",
    "NaN": b'{"price":NaN}',
    "Infinity": b'{"price":-Infinity}',
    "huge float": b'{"price":1e400}',
    "5,000 digits": b'{"price":' + b"1" * 5_000 + b"}",
    "3,000 levels": b"[" * 3_000 + b"]" * 3_000,
    "3,000 levels in a known field": b'{"price":' + b"[" * 3_000 + b"]" * 3_000 + b"}",
    "3,000 levels in an unknown field": b'{"x":' + b"[" * 3_000 + b"]" * 3_000 + b',"price":1}',
    "3,000 objects": b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    "100,000 levels, never closed": b"[" * 100_000,
    "binary": bytes(range(256)),
    "101 levels": b"[" * 101 + b"]" * 101,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("codec", CODECS[:-1], ids=lambda codec: str(codec.annotation))
def test_malformed_data_is_invalid_arg(codec: Codec, data: bytes) -> None:
    with pytest.raises(InvalidArg) as caught:
        codec.decode(data, None)

    assert caught.value.path.startswith("$")
    assert SECRET not in str(caught.value)


@given(st.binary() | st.text().map(str.encode).filter(bool), st.sampled_from(CODECS))
def test_random_bytes_decode_or_are_invalid_arg(data: bytes, codec: Codec) -> None:
    try:
        codec.decode(data, None)
    except InvalidArg as error:
        assert error.path.startswith("$")  # noqa: PT017 - one of two good ends


def test_depth_is_counted_by_levels_and_not_by_brackets() -> None:
    wide = {"a": [{"b": '[[["\\'}] * 1_000, "c": "]" * 1_000, "d": "[" * 1_000}
    deepest = b"[" * 100 + b"]" * 100

    assert round_trip(ANY, wide) == wide
    assert ANY.decode(deepest, None) == nested(100)
    assert ANY.decode(b"[" + b",".join([b"[" * 99 + b"]" * 99] * 50) + b"]", None)


@pytest.mark.parametrize("codec", [ANY, Codec(bytes), Codec(Order), Codec(Line)])
@pytest.mark.parametrize("content_type", [None, "application/octet-stream"])
def test_data_above_the_limit_is_not_parsed(codec: Codec, content_type: str | None) -> None:
    with pytest.raises(InvalidArg, match="11 bytes, more than the 10 bytes allowed") as caught:
        codec.decode(b"[" * 11, content_type, max_size=10)

    assert caught.value.path == "$"


def test_a_handler_of_anything_gets_bytes_of_other_content_types() -> None:
    assert ANY.decode(b"\x08\x01", "application/x-protobuf") == b"\x08\x01"


@pytest.mark.parametrize("odd", [5, ["a"], {"a": 1}], ids=str)
def test_a_content_type_that_is_no_text_is_another_one(odd: Any) -> None:
    """SQL may have written any JSON into the headers."""
    assert ANY.decode(b"{}", odd) == b"{}"
    with pytest.raises(InvalidArg, match="stored as bytes"):
        Codec(Order).decode(b"{}", odd)


def test_recursion_near_the_limit_is_no_recursion_error() -> None:
    """A deep stack of the caller's leaves msgspec no room; that is still a plain refusal."""
    limit = sys.getrecursionlimit()

    def descend(left: int) -> None:
        if left:
            descend(left - 1)
        else:
            ANY.encode(nested(90))

    outcomes: set[type | None] = set()
    for spare in range(40, 200, 20):
        try:
            descend(limit - spare - len(traceback.extract_stack()))
        except InvalidArg as error:
            outcomes.add(type(error))
        except RecursionError:
            outcomes.add(RecursionError)
        else:
            outcomes.add(None)

    assert outcomes <= {InvalidArg, None}


# --- Fields -----------------------------------------------------------------------------------


class Named(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)

    order_id: int = pydantic.Field(alias="orderId")
    note: str = ""


@pytest.mark.parametrize(
    ("annotation", "known", "required"),
    [
        (Order, {"items", "by_name", "note"}, {"items"}),
        (Order | None, {"items", "by_name", "note"}, {"items"}),
        (Annotated[Order, "doc"], {"items", "by_name", "note"}, {"items"}),
        (Struct, {"orderId", "sentAt", "nodes"}, {"orderId"}),
        (Receipt, {"order_id", "email"}, {"order_id"}),
        (Line, {"price", "ordered_at"}, {"price"}),
        (Invoice, {"invoiceNumber", "lines", "tags"}, {"invoiceNumber"}),
        (Named, {"order_id", "orderId", "note"}, {"orderId"}),
    ],
)
def test_fields_of_object_like_annotations(
    annotation: Any, known: set[str], required: set[str]
) -> None:
    assert fields(annotation) == Fields(frozenset(known), frozenset(required))


@pytest.mark.parametrize(
    "annotation", [Any, bytes, int, dict[str, int], list[Order], Order | Struct, Parameter.empty]
)
def test_other_annotations_have_no_fields(annotation: Any) -> None:
    assert fields(annotation) is None


# --- Imports ----------------------------------------------------------------------------------


def test_neither_sqlalchemy_nor_pydantic_is_needed() -> None:
    script = """if True:
        import sys
        sys.modules["pydantic"] = sys.modules["sqlalchemy"] = None
        from sqlalchemy_bgjob._drafts.codec import Codec
        from sqlalchemy_bgjob.exceptions import InvalidArg
        assert Codec(list[int]).decode(*Codec(list[int]).encode([1])) == [1]
        try:
            Codec().encode([object()])
        except InvalidArg as error:
            print(error)
    """

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "invalid arg at $[0]: object has no JSON form; pass plain data\n"
