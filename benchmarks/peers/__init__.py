"""The job queues that the benchmark runs beside sqlalchemy-bgjob, and how to install them.

Each has a script of its own in this folder, run as ``SCRIPT COMMAND DSN [JSON options]`` in an
environment of its own; :func:`prepare` makes it. Versions are pinned to those the scripts were
written against.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["PEERS", "Peer", "prepare"]

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """One other queue: its script here, and the packages that this needs."""

    name: str
    kind: Literal["python", "node"]
    script: str
    packages: tuple[str, ...]


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("awa", "python", "peer_awa.py", ("awa-pg==0.6.9",)),
        Peer(
            "chancy",
            "python",
            "peer_chancy.py",
            ("chancy==0.26.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"),
        ),
        # graphile-worker 0.18 needs Node 22.
        Peer("graphile", "node", "peer_graphile.mjs", ("graphile-worker@0.17.3", "pg@8.23.1")),
        # pg-boss 11 and later need Node 22.
        Peer("pgboss", "node", "peer_pgboss.mjs", ("pg-boss@10.4.2",)),
        Peer(
            "pgqueuer",
            "python",
            "peer_pgqueuer.py",
            ("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
        ),
        Peer(
            "procrastinate",
            "python",
            "peer_procrastinate.py",
            ("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"),
        ),
    )
}


def prepare(name: str, folder: Path) -> list[str]:
    """Install a peer under `folder` unless it is there; return how its script is called."""
    peer = PEERS[name]
    home = folder.absolute() / name
    home.mkdir(parents=True, exist_ok=True)
    stamp, wanted = home / "installed.json", json.dumps(peer.packages)
    fresh = not stamp.exists() or stamp.read_text() != wanted
    if peer.kind == "python":
        python = home / "venv" / "bin" / "python"
        if fresh:
            _run(sys.executable, "-m", "venv", "--clear", str(home / "venv"))
            _run(str(python), "-m", "pip", "install", "--quiet", *peer.packages)
        argv = [str(python), str(HERE / peer.script)]
    else:
        if fresh:
            _run("npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", *peer.packages)
        # Node looks for packages beside the script, so that has to be where they are.
        for script in (peer.script, "_common.mjs"):
            shutil.copyfile(HERE / script, home / script)
        argv = ["node", str(home / peer.script)]
    stamp.write_text(wanted)
    return argv


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
