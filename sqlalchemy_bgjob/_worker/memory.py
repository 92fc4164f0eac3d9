"""How much memory this process takes."""

import os
import sys
from contextlib import suppress
from pathlib import Path


def resident() -> int:
    """The bytes of this process that are in memory; where the system tells no more, the peak."""
    with suppress(OSError):  # Linux alone has it
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    import resource  # noqa: PLC0415 - Windows has none, and only max_memory asks for it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
