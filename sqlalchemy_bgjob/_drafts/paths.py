"""Paths to a place in an arg, as errors name them: ``$.items[3].price``."""

import json

_LONGEST_KEY = 64


def join(path: str, step: str | int) -> str:
    """A path, one step further: ``.name``, ``["odd key"]`` or ``[3]``."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    if len(step) > _LONGEST_KEY:
        step = step[:_LONGEST_KEY] + "..."
    return f"{path}.{step}" if step.isidentifier() else f"{path}[{json.dumps(step)}]"
