"""The garbage collector of a worker process: it leaves alone what was imported, which stays.

It would look through all of that again and again: for a twelfth of the time until the first job,
and then once in some ten thousand jobs for 40 ms, in which no job starts.
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
    """Let it look as often as before, but not through what is there by now.

    How often the application has said that it is to look, it does.
    """
    gc.freeze()
    if _usual and gc.get_threshold() == RARELY:
        gc.set_threshold(*_usual.pop())
    _usual.clear()
