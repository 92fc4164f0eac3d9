"""The garbage collector of a worker process while it imports the application.

What is imported stays, and the collector would look through all of it again and again: that is a
twelfth of the time until the first job.
"""

import gc
from typing import Final

RARELY: Final = (100_000, 50, 100)
_usual: list[tuple[int, int, int]] = []


def collect_rarely() -> None:
    """Let the collector look hardly ever, until :func:`collect_as_usual`."""
    _usual.append(gc.get_threshold())
    gc.set_threshold(*RARELY)


def collect_as_usual() -> None:
    """Let it look as often as before, unless the application has said how often it is to."""
    if _usual and gc.get_threshold() == RARELY:
        gc.set_threshold(*_usual.pop())
    _usual.clear()
