"""What a decoder found wrong with an arg: where, and why, without any value of it. Pure."""

import re
from typing import Any

import msgspec

from .paths import join

_SAFE_REASON = re.compile(
    r"Expected `|Integer value out of range|Number out of range|"
    r"Invalid (?:RFC3339|ISO8601|UUID|decimal|base64|duration|utf)"
)
_STEP = re.compile(r"\.([^.\[\]`]+)|\[(\d+)\]|\[(\.\.\.)\]")


def explain(error: Exception) -> tuple[str, str]:
    """The path and the reason; a decoder's text is passed on only if it can't hold a value."""
    if isinstance(error, msgspec.ValidationError):
        return _explain_msgspec(error)
    if hasattr(error, "errors") and hasattr(error, "error_count"):
        return _explain_pydantic(error, "$")
    if isinstance(error, RecursionError):
        return "$", "nested too deeply"
    if isinstance(error, (msgspec.DecodeError, UnicodeDecodeError)):
        return "$", "not JSON; bytes of another kind need the annotation bytes"
    return "$", f"{{name}} refused it ({type(error).__name__})"


def _explain_msgspec(error: msgspec.ValidationError) -> tuple[str, str]:
    message, path, in_key = _split(error)
    cause = error.__cause__
    if hasattr(cause, "errors") and hasattr(cause, "error_count"):
        return _explain_pydantic(cause, path)
    if cause is not None:
        return path, f"{{name}} refused it ({type(cause).__name__})"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message, re.DOTALL):
        return join(path, missing[1]), "required, but missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        return join(path, unknown[1]), "not a known field"
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
        path = join(path, step)
    code = re.sub(r"\W", "_", first["type"])
    return path, f"does not fit {{name}} ({code})"


def _split(error: Exception) -> tuple[str, str, bool]:
    """The message of msgspec, the path, and whether a key (not its value) is wrong.

    The path names fields and indexes; a dict's key shows as ``[...]``.
    """
    message, found, path = str(error).rpartition(" - at `")
    if not found:
        return str(error), "$", False
    path = path.removesuffix("`")
    if path.startswith("key` in `"):
        return message, _quoted(path.removeprefix("key` in `")) + "[...]", True
    return message, _quoted(path), False


def _quoted(path: str) -> str:
    """The path of msgspec, with each field as :func:`join` writes it."""
    made, at = "$", 1
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return path
        name, index = step[1], step[2]
        made = f"{made}[...]" if name is index is None else join(made, name or int(index))
        at = step.end()
    return made
