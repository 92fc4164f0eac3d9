"""Which keys a type reads, so that keys that it would silently drop are refused.

Decoders ignore keys that a type does not know. So a subclass given for its base, or a misspelt
optional key, would make a job whose handler gets less than the caller gave. A shape holds the keys
of each object in a type, and finds the first key of a JSON document that is never read. It lets
keys pass where dropping them is intended, or where it can't tell for certain:

* ``Any``, ``object`` and dicts read every key;
* a pydantic model that says ``extra="ignore"`` drops keys on purpose;
* a pydantic model with model-level validators or serializers, or with a choice of aliases, may
  read keys that it does not name;
* of several models in a union only pydantic knows which one is meant.

Pydantic is not imported here: without it the program has no models.
"""

import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Final, Union

import msgspec.inspect as info

_OBJECTS: Final = (info.StructType, info.DataclassType, info.TypedDictType)
_LISTS: Final = (info.ListType, info.SetType, info.FrozenSetType, info.VarTupleType)


class Shape:
    """What a type reads of a JSON value, as far as that is known.

    Attributes:
        keys: The keys that are read of an object, with the shapes of their values; None for all.
        open: Whether other keys are meant to be ignored.
        tag: The key that chooses among several types, if there is one.
        choices: The shapes of these types, by the value of the tag.
        each: The shape of the items of a list, or of the values of an object with any keys.
        places: The shapes of a tuple's items.
    """

    __slots__ = ("choices", "each", "keys", "open", "places", "tag")

    def __init__(self) -> None:
        self.keys: dict[str, Shape] | None = None
        self.open = False
        self.tag: str | None = None
        self.choices: dict[Any, Shape] = {}
        self.each: Shape | None = None
        self.places: tuple[Shape, ...] = ()

    def is_plain(self) -> bool:
        """Whether no object further inside could hold an unread key."""
        inside = [*(self.keys or {}).values(), *self.choices.values(), *self.places]
        return self.each is None and all(shape is ANYTHING for shape in inside)

    def unread(self, document: Any) -> list[str | int] | None:
        """The path to the first key that is not read, or None."""
        todo: list[tuple[Shape, Any, Any]] = [(self, document, None)]
        while todo:
            shape, value, way = todo.pop()
            if isinstance(value, dict):
                if shape.tag is not None:
                    shape = shape.choices.get(value.get(shape.tag), ANYTHING)
                if shape.keys is None:
                    if shape.each is not None:
                        todo.extend((shape.each, item, (way, key)) for key, item in value.items())
                    continue
                for key, item in value.items():
                    inner = shape.keys.get(key)
                    if inner is not None:
                        if inner is not ANYTHING:
                            todo.append((inner, item, (way, key)))
                    elif not shape.open:
                        return _steps((way, key))
            elif isinstance(value, list) and shape.places:
                places = zip(shape.places, value, strict=False)
                todo.extend((inner, item, (way, n)) for n, (inner, item) in enumerate(places))
            elif isinstance(value, list) and shape.each is not None:
                todo.extend((shape.each, item, (way, n)) for n, item in enumerate(value))
        return None


ANYTHING: Final = Shape()
"""The shape of types that read every key, or have none."""


def shape_of(annotation: Any) -> Shape:
    """The shape of a type; ANYTHING where nothing can be left out."""
    try:
        return _Shapes().of(annotation)
    except Exception:  # a type that can be decoded, but not inspected
        return ANYTHING


def _steps(way: Any) -> list[str | int]:
    steps: list[str | int] = []
    while way is not None:
        way, step = way
        steps.append(step)
    return steps[::-1]


class _Shapes:
    """Builds the shapes of one annotation; a recursive type gets a single shape."""

    def __init__(self) -> None:
        self._met: dict[Any, Shape] = {}

    def of(self, annotation: Any) -> Shape:
        given = [member for member in members(annotation) if member is not type(None)]
        models = [member for member in given if hasattr(member, "__pydantic_validator__")]
        if len(given) == len(models) == 1:
            return self._model(models[0])
        if models:
            return ANYTHING
        return self._node(info.type_info(annotation))

    def _node(self, node: Any) -> Shape:
        if isinstance(node, info.Metadata):
            return self._node(node.type)
        if isinstance(node, info.UnionType):
            return self._union([self._node(part) for part in node.types])
        if isinstance(node, info.CustomType):
            return self._model(node.cls)
        if isinstance(node, _OBJECTS):
            return self._object(node)
        shape = Shape()
        if isinstance(node, _LISTS):
            shape.each = self._inner(node.item_type)
        elif isinstance(node, info.TupleType):
            shape.places = tuple(self._node(part) for part in node.item_types)
            if all(place is ANYTHING for place in shape.places):
                return ANYTHING
        elif isinstance(node, info.DictType):
            shape.each = self._inner(node.value_type)
        return shape if shape.each is not None or shape.places else ANYTHING

    def _inner(self, node: Any) -> Shape | None:
        shape = self._node(node)
        return None if shape is ANYTHING else shape

    def _object(self, node: Any) -> Shape:
        if getattr(node, "array_like", False):
            return ANYTHING
        found = self._met.get(node.cls)
        if found is not None:
            return found
        shape = whole = Shape()
        tag = getattr(node, "tag_field", None)
        if tag is not None:
            whole = Shape()
            whole.tag, whole.choices = tag, {node.tag: shape}
        self._met[node.cls] = whole
        shape.keys = {field.encode_name: self._node(field.type) for field in node.fields}
        if tag is not None:
            shape.keys[tag] = ANYTHING
        return whole

    def _union(self, parts: Sequence[Shape]) -> Shape:
        """One shape for members that their tags tell apart; ANYTHING for any other union."""
        parts = [part for part in parts if part is not ANYTHING]
        if len(parts) <= 1:
            return parts[0] if parts else ANYTHING
        union = Shape()
        for part in parts:
            if part.tag is None:
                return ANYTHING
            union.tag = part.tag
            union.choices |= part.choices
        return union

    def _model(self, model: Any) -> Shape:
        if not hasattr(model, "model_fields") or _has_ways_of_its_own(model):
            return ANYTHING
        found = self._met.get(model)
        if found is not None:
            return found
        shape = self._met[model] = Shape()
        shape.open = model.model_config.get("extra") is not None
        plain = not model.__pydantic_decorators__.field_validators
        keys: dict[str, Shape] = {}
        for _, names, field in model_names(model):
            inner = ANYTHING
            if plain and not field.metadata and field.discriminator is None:
                try:
                    inner = self.of(field.annotation)
                except Exception:  # a type that only pydantic knows
                    inner = ANYTHING
            keys.update(dict.fromkeys(names, inner))
        shape.keys = keys
        return shape


def members(annotation: Any) -> list[Any]:
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
    if typing.get_origin(annotation) in (Union, UnionType):
        return [part for member in typing.get_args(annotation) for part in members(member)]
    return [type(None) if annotation is None else annotation]


def model_names(model: Any) -> Iterator[tuple[str, list[str], Any]]:
    """Each field of a pydantic class: its attribute, the keys from which it is read, the field."""
    # Of a model, and of a dataclass.
    fields = getattr(model, "model_fields", None) or getattr(model, "__pydantic_fields__", {})
    config = _config(model)
    by_name = config.get("validate_by_name") or config.get("populate_by_name")
    by_alias = config.get("validate_by_alias", True)
    for name, field in fields.items():
        alias = field.validation_alias if by_alias else None
        names = [alias] if isinstance(alias, str) else _choices(alias)
        yield name, names + ([name] if by_name or alias is None else []), field


def _choices(alias: Any) -> list[str]:
    # An AliasChoices; a path into another key, as it may have, is read from nothing that is dumped.
    return [choice for choice in getattr(alias, "choices", ()) if isinstance(choice, str)]


def _config(model: Any) -> Mapping[str, Any]:
    return getattr(model, "model_config", None) or getattr(model, "__pydantic_config__", None) or {}


def _has_ways_of_its_own(model: Any) -> bool:
    """Whether a model may read, or write, other keys than those of its fields."""
    return _is_converted(model) or any(
        not isinstance(field.validation_alias, str | None) for field in model.model_fields.values()
    )


def _is_converted(model: Any) -> bool:
    """Whether the class has code that may change keys when it is read, or written."""
    decorators = model.__pydantic_decorators__
    return bool(
        decorators.model_validators
        or decorators.model_serializers
        or getattr(model, "__pydantic_root_model__", False)
        or any(
            "__get_pydantic_core_schema__" in vars(base)
            for base in model.__mro__
            if not base.__module__.startswith("pydantic")
        )
    )


@lru_cache(maxsize=1_000)
def not_read_back(model: Any) -> tuple[str, str] | None:
    """A field that a pydantic class writes by a name from which it does not read, and the name."""
    if not hasattr(model, "__pydantic_decorators__") or _is_converted(model):
        return None
    by_alias = _config(model).get("validate_by_alias", True)
    for name, names, field in model_names(model):
        written = (by_alias and field.serialization_alias) or name
        if not field.exclude and written not in names:
            return name, written
    return None


def left_out_of_dump(item: Any) -> list[str | int] | None:
    """The path to a field that a pydantic object's dump leaves out, or None.

    Pydantic dumps a nested model as its annotation says: the fields of a subclass are lost.
    """
    todo: list[tuple[Any, Any]] = [(item, None)]
    while todo:
        model, way = todo.pop()
        cls: Any = type(model)
        for name, annotation in _model_fields_with_models(cls):
            for part, base, step in _parts(annotation, vars(model).get(name), (way, name)):
                given: Any = type(part)
                lacking = _lacking(given, base)
                if lacking is not None:
                    return _steps((step, lacking))
                todo.append((part, step))
    return None


@lru_cache(maxsize=1_000)
def _model_fields_with_models(model: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a model that hold other models, and are dumped as their annotations say."""
    if not hasattr(model, "model_fields") or _has_ways_of_its_own(model):
        return ()
    decorators = model.__pydantic_decorators__.field_serializers.values()
    serialized = {name for decorator in decorators for name in decorator.info.fields}
    return tuple(
        (name, field.annotation)
        for name, field in model.model_fields.items()
        if not (field.metadata or field.exclude or serialized & {name, "*"})
        and _names_a_model(field.annotation)
    )


def _names_a_model(annotation: Any) -> bool:
    return any(
        hasattr(member, "model_fields") or any(map(_names_a_model, typing.get_args(member)))
        for member in members(annotation)
    )


@lru_cache(maxsize=1_000)
def _lacking(model: Any, base: Any) -> str | None:
    """A field that a model loses when it is dumped as its base."""
    if model is base or _has_ways_of_its_own(model):
        return None
    more = model.model_fields.keys() - base.model_fields.keys()
    return min((name for name in more if not model.model_fields[name].exclude), default=None)


def _parts(annotation: Any, value: Any, way: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The models in a field's value, each with the model that the annotation names for it."""
    for member in members(annotation):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if isinstance(member, type) and hasattr(member, "model_fields"):
            exact = any(type(value) is other for other in members(annotation))
            if type(value) is member or (isinstance(value, member) and not exact):
                yield value, member, way
                return
        elif origin in (list, Sequence) and isinstance(value, list | tuple):
            for n, part in enumerate(value):
                yield from _parts(args[0], part, (way, n))
        elif origin in (dict, Mapping) and isinstance(value, dict):
            for key, part in value.items():
                yield from _parts(args[1], part, (way, str(key)))
