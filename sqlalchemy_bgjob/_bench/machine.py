"""What the figures depend on: versions, machine, the server and what it uses of the processor."""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from .._version import __version__
from .arena import OURS


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


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {OURS: __version__, "Python": platform.python_version()}
    for name in ("SQLAlchemy", "psycopg", "asyncpg", "greenlet"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    found: dict[str, Any] = {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    with contextlib.suppress(OSError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = round(pages / 2**30, 1)
    return found


SERVER_SETTINGS: Final = (
    "server_version",
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "max_wal_size",
    "autovacuum",
)


def server_settings(engine: Engine) -> dict[str, str]:
    """The server's version, and what its speed depends on."""
    with engine.connect() as connection:
        return {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in SERVER_SETTINGS
        }
