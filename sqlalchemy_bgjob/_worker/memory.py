"""How much memory this process takes."""

import resource
import sys
from contextlib import suppress
from pathlib import Path


def resident() -> int:
    """The bytes of this process that are in memory; where the system tells no more, the peak."""
    with suppress(OSError):  # Linux alone has it
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
