"""What a handler says of itself, for those who look on: its docstring, its options, its arg."""

import inspect
from typing import Any

import msgspec

from .registry import JobType


def described(handler: JobType[Any]) -> dict[str, Any]:
    """Type, queue, function, documentation, and how its jobs are run."""
    function, options = handler.function, handler.options
    doc = (inspect.getdoc(function) or "").strip()
    return {
        "type": handler.type,
        "queue": handler.queue,
        "function": f"{function.__module__}.{function.__qualname__}"
        if hasattr(function, "__qualname__")
        else repr(type(function)),
        "summary": doc.partition("\n")[0],
        "doc": doc,
        "takes_arg": handler.takes_arg,
        "is_coroutine": handler.is_coroutine,
        "max_attempts": options.max_attempts,
        "timeout": options.timeout,
    }


def arg_schema(handler: JobType[Any]) -> Any:
    """The JSON schema of the arg; None if it takes none, or none can be made."""
    if not handler.takes_arg:
        return None
    annotation = handler.annotation
    try:
        if hasattr(annotation, "model_json_schema"):
            return annotation.model_json_schema()
        return msgspec.json.schema(annotation)
    except Exception:  # an annotation may be anything that its library takes
        return None
