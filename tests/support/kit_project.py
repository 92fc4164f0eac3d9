"""A user's project whose tests use the pytest plugin, run by a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PLUGIN = "sqlalchemy_bgjob.pytest_plugin"
COMMAND = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = {entry.value for entry in entry_points(group="pytest11")}
    # Where the package is not installed, as when another checkout is tested, it is named.
    by_name = [] if PLUGIN in found else ["-p", PLUGIN]
    # A folder without options of its own: those of this repository are not for it.
    (folder / "pytest.ini").touch()
    return subprocess.run(
        [*COMMAND, *by_name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
