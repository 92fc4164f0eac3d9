"""A page's data as its JSON twin has it. Pure."""

from dataclasses import fields, is_dataclass
from typing import Any

from .._inspect.jobs import JobInfo
from .._inspect.records import JobRecord
from .words import iso


def as_json(value: Any) -> Any:
    """A page's data as JSON has it: no bytes, and no number that a script would round."""
    if is_dataclass(value) and not isinstance(value, type):
        # What a visitor may see of arg, headers and result is in the page's contents.
        left_out = {"arg", "headers", "result"} if isinstance(value, JobInfo | JobRecord) else ()
        names = [one.name for one in fields(value) if one.name not in left_out]
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(one) for one in value]
    if isinstance(value, int) and abs(value) > 2**53:
        return str(value)
    if hasattr(value, "isoformat"):
        return iso(value)
    return value
