"""An arg of which the handler would not get everything is refused when it is enqueued."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

import msgspec
import pydantic
import pytest
from typing_extensions import TypedDict

from sqlalchemy_bgjob._drafts.codec import Codec
from sqlalchemy_bgjob.exceptions import InvalidArg

pytestmark = pytest.mark.core


@dataclass
class Part:
    id: int
    note: str | None = None


@dataclass
class PricedPart(Part):
    price: int = 0


@dataclass
class Order:
    part: Part
    parts: list[Part] = field(default_factory=list)
    by_name: dict[str, Part] = field(default_factory=dict)
    pair: tuple[int, Part] | None = None
    rest: Any = None


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)


class Wanted(TypedDict):
    id: int
    copy_to: NotRequired[str]


class Struct(msgspec.Struct, rename="camel", omit_defaults=True):
    order_id: int
    copy_to: str | None = None


class PricedStruct(Struct, rename="camel"):
    price: int = 0


class Card(msgspec.Struct, tag=True):
    number: str


class Cash(msgspec.Struct, tag=True):
    amount: int


class Model(pydantic.BaseModel):
    id: int
    copy_to: str | None = None


class PricedModel(Model):
    price: int = 0


class Basket(pydantic.BaseModel):
    model: Model | None = None
    models: list[Model] = []
    by_name: dict[str, Model] = {}


class Mixed(msgspec.Struct):
    model: Model


REFUSED: list[tuple[Any, Any, str]] = [
    (Part, PricedPart(1), "$.price"),
    (Part, {"id": 1, "notes": "x"}, "$.notes"),
    (Part | None, {"id": 1, "notes": "x"}, "$.notes"),
    (list[Part], [Part(1), PricedPart(1)], "$[1].price"),
    (dict[str, Part], {"a": {"id": 1, "x": 2}}, "$.a.x"),
    (Order, Order(PricedPart(1)), "$.part.price"),
    (Order, Order(Part(1), parts=[Part(1), PricedPart(2)]), "$.parts[1].price"),
    (Order, Order(Part(1), by_name={"a b": PricedPart(2)}), '$.by_name["a b"].price'),
    (Order, Order(Part(1), pair=(1, PricedPart(2))), "$.pair[1].price"),
    (Tree, Tree("a", [Tree("b", [{"name": "c", "kids": []}])]), "$.children[0].children[0].kids"),  # type: ignore[list-item]
    (Wanted, {"id": 1, "copyto": "x"}, "$.copyto"),
    (Struct, {"orderId": 1, "copy_to": "x"}, "$.copy_to"),
    (Struct, PricedStruct(1, price=5), "$.price"),
    (Card | Cash, {"type": "Cash", "amount": 1, "tip": 2}, "$.tip"),
    (
        tuple[Card | Cash, Card | Cash],
        ({"type": "Cash", "amount": 1}, {"type": "Cash", "amount": 1, "tip": 2}),
        "$[1].tip",
    ),
    (Model, PricedModel(id=1), "$.price"),
    (Model, {"id": 1, "copyto": "x"}, "$.copyto"),
    (list[Model], [PricedModel(id=1)], "$[0].price"),
    (Basket, Basket(model=PricedModel(id=1)), "$.model.price"),
    (Basket, Basket(models=[Model(id=1), PricedModel(id=1)]), "$.models[1].price"),
    (Basket, Basket(by_name={"a": PricedModel(id=1)}), "$.by_name.a.price"),
    (Basket, {"model": {"id": 1, "copyto": "x"}}, "$.model.copyto"),
    (Mixed, Mixed(PricedModel(id=1)), "$.model.price"),
    (Any, Basket(model=PricedModel(id=1)), "$.model.price"),
]


@pytest.mark.parametrize(("annotation", "arg", "path"), REFUSED, ids=lambda v: str(v)[:60])
def test_what_the_handler_would_not_get_is_refused(annotation: Any, arg: Any, path: str) -> None:
    """Type checkers accept a subclass, and nothing accepts a misspelt key but a decoder."""
    with pytest.raises(InvalidArg) as refused:
        Codec(annotation).encode(arg)
    assert refused.value.path == path


# What looks like it is not all read, or comes back in another form, but is the type's meaning.


class Colour(Enum):
    RED = "red"


class Ignores(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")
    id: int


class Allows(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: int


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)
    order_id: int = pydantic.Field(alias="orderId")
    hidden: int = pydantic.Field(default=0, exclude=True)


class ManyNames(pydantic.BaseModel):
    id: int = pydantic.Field(validation_alias=pydantic.AliasChoices("id", "order_id"))


class Renames(pydantic.BaseModel):
    id: int

    @pydantic.model_validator(mode="before")
    @classmethod
    def rename(cls, data: Any) -> Any:
        return {"id": data["old"], "old": data["old"]} if "old" in data else data


class ByFunction(pydantic.BaseModel):
    id: int

    @pydantic.model_serializer
    def dump(self) -> dict[str, Any]:
        return {"id": self.id, "kind": "by function"}


class FieldByFunction(pydantic.BaseModel):
    model: Model

    @pydantic.field_serializer("model")
    def dump(self, model: Model) -> dict[str, Any]:
        return {"id": model.id}


class InnerRenames(pydantic.BaseModel):
    model: Annotated[Model, pydantic.BeforeValidator(lambda v: {"id": v["old"]})]


class Computes(pydantic.BaseModel):
    id: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.id * 2


class SameFields(Model):
    def more(self) -> int:
        return self.id


@dataclass
class MoreOfNothing(Part):
    def more(self) -> int:
        return self.id


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: int = 1


T = TypeVar("T")


class Box(pydantic.BaseModel, Generic[T]):
    inside: T


class House(pydantic.BaseModel):
    pet: Cat | Dog
    named: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]


class Point(msgspec.Struct, array_like=True):
    x: int
    y: int = 0


@dataclass
class Forms:
    number: float = 0
    at: datetime | None = None
    amount: Decimal = Decimal(0)
    colour: Colour = Colour.RED
    tags: set[str] = field(default_factory=set)
    pair: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    by_id: dict[int, Part] = field(default_factory=dict)
    made: int = field(init=False, default=3)
    _private: int = 1


SOON = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ACCEPTED: list[tuple[Any, Any]] = [
    (Part, Part(1)),
    (Part, {"id": 1}),
    (Part, MoreOfNothing(1)),
    (Part | int, 7),
    (Order, Order(Part(1), rest={"anything": [{"at": "all"}]})),
    (Tree, Tree("a", [Tree("b")])),
    (Wanted, {"id": 1, "copy_to": "x"}),
    (Struct, {"orderId": 1, "copyTo": None}),
    (Struct, Struct(1)),
    (Card | Cash, Cash(1)),
    (Card | Cash, {"type": "Card", "number": "1"}),
    (Point, Point(1)),
    (Forms, Forms(number=1, at=SOON, amount=Decimal("1.10"), tags={"b", "a"}, pair=(1, 2))),
    (Forms, {"number": 1, "at": "2026-01-02T03:04:05+00:00", "amount": "1.1", "extra": {"a": 1}}),
    (Forms, Forms(by_id={1: Part(1)})),
    (dict[str, Any], {"a": {"b": 1}}),
    (dict, {1: 2}),
    (Any, {1: (1, 2)}),
    (Any, Order(PricedPart(1))),
    (object, PricedPart(1)),
    (Model, Model(id=1)),
    (Model, SameFields(id=1)),
    (Ignores, {"id": 1, "else": 2}),
    (Allows, {"id": 1, "else": 2}),
    (Aliased, Aliased(orderId=1)),
    (Aliased, {"order_id": 1, "hidden": 2}),
    (Aliased, {"orderId": 1}),
    (ManyNames, {"order_id": 1}),
    (Renames, {"old": 1}),
    (ByFunction, ByFunction(id=1)),
    (FieldByFunction, FieldByFunction(model=PricedModel(id=1))),
    (InnerRenames, {"model": {"old": 1}}),
    (Computes, Computes(id=1)),
    (House, House(pet=Dog(), named=Cat())),
    (House, {"pet": {"kind": "dog", "tricks": 2}, "named": {"kind": "cat", "lives": 1}}),
    (Box[Model], Box[Model](inside=Model(id=1))),
    (Box[int], {"inside": 1}),
    (Basket, Basket(model=SameFields(id=1))),
]


@pytest.mark.parametrize(("annotation", "arg"), ACCEPTED, ids=lambda value: str(value)[:60])
def test_what_the_type_means_is_accepted(annotation: Any, arg: Any) -> None:
    codec = Codec(annotation)
    encoded = codec.encode(arg)
    codec.decode(encoded.data, encoded.content_type)


def test_a_row_of_a_newer_release_is_still_decoded() -> None:
    """Producers of the next release may add a field while workers of this one run."""
    assert Codec(Part).decode(b'{"id":1,"added":2}') == Part(1)
    assert Codec(Model).decode(b'{"id":1,"added":2}') == Model(id=1)


def test_types_that_hold_themselves_are_looked_at_once() -> None:
    made = Tree("0")
    for n in range(40):
        made = Tree(str(n), [made])

    codec = Codec(Tree)
    assert codec.decode(codec.encode(made).data) == made
    assert dataclasses.asdict(made)["name"] == "39"
