"""The fields of a form as values. What can't be read is refused by a sentence that names it."""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from .visit import Visit

T = TypeVar("T")


def optional(visit: Visit, name: str, read: Callable[[Visit, str], T]) -> T | None:
    """A field of the form as it is read; None if it is empty."""
    return read(visit, name) if visit.asked(name).strip() else None


def number(visit: Visit, name: str) -> float:
    """A finite number."""
    text = visit.asked(name).strip()
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise HTTPException(400, f"{name} is no number: {text[:40]!r}")
    return found


def whole(visit: Visit, name: str) -> int:
    """A whole number."""
    text = visit.asked(name).strip()
    try:
        return int(text)
    except ValueError:
        raise HTTPException(400, f"{name} is no whole number: {text[:40]!r}") from None


def json_of(visit: Visit, name: str) -> Any:
    """A value of JSON."""
    try:
        return json.loads(visit.asked(name).strip())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"{name} is not JSON: {error}") from None
