"""The surroundings of a benchmark: versions, machine, server settings."""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from .._version import __version__
from .arena import OURS


def versions() -> dict[str, str]:
    """The versions of this package, Python, SQLAlchemy and the drivers."""
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
    """The server's version, and the settings that decide its speed."""
    with engine.connect() as connection:
        return {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in SERVER_SETTINGS
        }
