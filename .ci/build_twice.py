"""Build the wheel and the sdist twice, and refuse them if a byte differs.

The second build is of the unpacked sdist: in another folder, with other times and another umask.
So whoever has the sources of a release can make the same files, and compare. It needs `build` and
what pyproject.toml asks for to build.

    python .ci/build_twice.py dist
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONG_AGO = 1_000_000_000


def main(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty; remove what is in it")
    build(ROOT, out)
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder, "again")
        os.umask(0o077)
        build(unpacked(out, Path(folder, "source")), again)
        first, second = sums(out), sums(again)
    if first != second:
        sys.exit(f"the builds differ:\n{first}\n{second}")
    for name, digest in first.items():
        print(f"{digest}  {name}")


def build(source: Path, out: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def unpacked(out: Path, folder: Path) -> Path:
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        # Debian's Python 3.11.2 has no filters yet.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder)
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    (source,) = folder.iterdir()
    return source


def sums(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
