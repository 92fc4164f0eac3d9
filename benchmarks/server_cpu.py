"""What the server uses of the processor, where it runs on this machine."""

import os
from pathlib import Path

from sqlalchemy import Engine


def server_cpu(engine: Engine) -> float | None:
    """Processor seconds that the server has used, if it runs where this does and can be seen."""
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        backend = _process_stat(pid)
    if backend is None or backend[0] != "postgres":
        return None
    postmaster = _process_stat(int(backend[1][1]))
    if postmaster is None or postmaster[0] != "postgres":
        return None
    # Its own, and those of the children that have ended.
    ticks = sum(int(value) for value in postmaster[1][11:15])
    for path in Path("/proc").iterdir():
        child = _process_stat(int(path.name)) if path.name.isdecimal() else None
        if child is not None and child[1][1] == backend[1][1]:
            ticks += int(child[1][11]) + int(child[1][12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _process_stat(pid: int) -> tuple[str, list[str]] | None:
    """A process's name, and the fields of /proc/PID/stat that follow it: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()
