"""What a decoder found wrong with an arg: where, and why, without any value of it. Pure."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import msgspec.inspect

from .storable import join

_SAFE_REASON = re.compile(
    r"Expected `|Integer value out of range|Number out of range|"
    r"Invalid (?:RFC3339|ISO8601|UUID|decimal|base64|duration|utf)"
)
_STEP = re.compile(r"\.([^.\[\]`]+)|\[(\d+)\]|\[(\.\.\.)\]")


def explain(error: Exception, data: bytes, load: Callable[[bytes], Any]) -> tuple[str, str]:
    """The path and the reason; text of others is passed on only if it can't hold a value."""
    if isinstance(error, msgspec.ValidationError):
        return _explain_msgspec(error, data, load)
    if hasattr(error, "errors") and hasattr(error, "error_count"):
        return _explain_pydantic(error, "$")
    if isinstance(error, RecursionError):
        return "$", "nested too deeply"
    if isinstance(error, (msgspec.DecodeError, UnicodeDecodeError)):
        return "$", "not JSON; bytes of another kind need the annotation bytes"
    return "$", f"{{name}} refused it ({type(error).__name__})"


def _explain_msgspec(
    error: msgspec.ValidationError, data: bytes, load: Callable[[bytes], Any]
) -> tuple[str, str]:
    message, path, in_key = _split(error)
    steps = _steps(path)
    if steps is not None:
        path = render(_resolve([*steps, None] if in_key else steps, error, data, load))
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
    """The message of msgspec, the path, and whether a key (not its value) is wrong."""
    message, found, path = str(error).rpartition(" - at `")
    if not found:
        return str(error), "$", False
    path = path.removesuffix("`")
    return message, path.removeprefix("key` in `"), path.startswith("key` in `")


def _steps(path: str) -> list[str | int | None] | None:
    steps: list[str | int | None] = []
    at = 1
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return None
        steps.append(step[1] or (int(step[2]) if step[2] else None))
        at = step.end()
    return steps


def render(steps: Iterable[str | int | None]) -> str:
    """The path of these steps, as messages show it; None is a step that is not known."""
    path = "$"
    for step in steps:
        path = f"{path}[...]" if step is None else join(path, step)
    return path


def _resolve(
    steps: list[str | int | None], error: Exception, data: bytes, load: Callable[[bytes], Any]
) -> list[str | int | None]:
    """Find the keys that msgspec's paths leave out, by halving the object until one key is left."""
    if None not in steps:
        return steps
    expected = _split(error)[1:]
    try:
        document = msgspec.json.decode(data)
    except ValueError:
        return steps
    for index, step in enumerate(steps):
        if step is not None:
            continue
        target = document
        for known in steps[:index]:
            try:
                target = target[known]
            except (KeyError, IndexError, TypeError):
                return steps
        if not isinstance(target, dict):
            return steps
        entries = list(target.items())
        while len(entries) > 1:
            half = entries[: len(entries) // 2]
            target.clear()
            target.update(half)
            try:
                load(msgspec.json.encode(document))
                failed = False
            except Exception as again:
                failed = _split(again)[1:] == expected
            entries = half if failed else entries[len(half) :]
        target.clear()
        target.update(entries)
        steps = [*steps[:index], entries[0][0], *steps[index + 1 :]]
    return steps
