"""Run a command of pytest, and up to three tests that failed three times more by themselves.

Bounds on time can break where others use the processors. A test that fails again fails the run. One
that passes three times is unstable, and to be mended: its name goes to standard error, and to the
file that BGJOB_CI_UNSTABLE names.

    python .ci/tested.py pytest -m core
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MOST = 3
TIMES = 3


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cache = Path(folder, "cache")
        options = ["-o", f"cache_dir={cache}"]
        code = subprocess.run([*command, *options], check=False).returncode
        failed = failed_in(cache)
        # Without a name pytest would run all there is.
        if code != 1 or not 0 < len(failed) <= MOST:
            return code
        before = command[: command.index("pytest") + 1]
        for time in range(1, TIMES + 1):
            print(f"\n-- again by themselves, {time} of {TIMES}: {' '.join(failed)}", flush=True)
            again = [*before, "-n", "0", "-m", "", *options, *failed]
            if subprocess.run(again, check=False).returncode != 0:
                return 1
    note(failed)
    return 0


def failed_in(cache: Path) -> list[str]:
    found = cache / "v" / "cache" / "lastfailed"
    return list(json.loads(found.read_text())) if found.exists() else []


def note(unstable: list[str]) -> None:
    lines = "".join(f"{name}\n" for name in unstable)
    sys.stderr.write(f"unstable:\n{lines}")
    if file := os.environ.get("BGJOB_CI_UNSTABLE"):
        with Path(file).open("a") as log:
            log.write(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
