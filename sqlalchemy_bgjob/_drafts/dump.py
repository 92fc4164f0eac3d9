"""A pydantic object as plain values, if nothing is lost on the way.

Pydantic's dump is lenient where a queue must not be: it masks secrets, leaves out the fields of a
subclass, writes fields by names that validation does not know, and makes None of NaN.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

from ..exceptions import InvalidArg
from .kinds import (
    BUILTIN_KINDS,
    NOT_FINITE,
    PYDANTIC,
    UNSUPPORTED,
    is_model,
    kind_of,
    refuse_foreign,
)
from .paths import join
from .shapes import left_out_of_dump, not_read_back


def dump(item: Any, path: "str | Callable[[], str]") -> Any:
    """A pydantic object as JSON values, named and shaped so that validation takes them back."""
    if kind_of(item) == UNSUPPORTED:
        refuse_foreign(item, path)
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
    if any(_is_object(part) and kind_of(part) == UNSUPPORTED for part in held):
        return "holds an ORM instance; pass the primary key"
    classes: set[Any] = {type(part) for part in held if _is_object(part)}
    for cls in classes:
        if (renamed := not_read_back(cls)) is not None:
            field, written = renamed
            return (
                f"writes {cls.__name__}.{field} as {written!r}, from where it is not read again; "
                f"give the field one alias= for both"
            )
    # In an untyped field NaN becomes None. (In a float field it stays, and the walk finds it.)
    if None in leaves and any(map(_not_finite, held)) and not any(map(_not_finite, leaves)):
        return f"holds NaN or an infinity; {NOT_FINITE}"
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
        if BUILTIN_KINDS.get(type(item), UNSUPPORTED) < PYDANTIC:
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
