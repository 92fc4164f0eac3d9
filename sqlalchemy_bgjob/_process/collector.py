"""The garbage collector of a worker process: it leaves alone what was imported, which stays.

It would look through all of that again and again: for a twelfth of the time until the first job,
and then once in some ten thousand jobs for 40 ms, in which no job starts.
"""

import gc
from typing import Final

RARELY: Final = (100_000, 50, 100)
_changed: list[tuple[tuple[int, int, int], tuple[int, int, int]]] = []
"""How often it looked before, and since: what is read back may differ from what was set."""


def collect_rarely() -> None:
    """Let the collector look hardly ever, until :func:`collect_as_usual`."""
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    _changed.append((before, gc.get_threshold()))


def collect_as_usual() -> None:
    """Let it look as often as before, but not through what is there by now.

    How often the application has said that it is to look, it does.
    """
    gc.freeze()
    if _changed:
        before, since = _changed.pop()
        if gc.get_threshold() == since:
            gc.set_threshold(*before)
