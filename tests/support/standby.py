"""A standby of a server, by streaming, that can be promoted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
from support.databases import DISPOSABLE
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def standby_of(primary: EmbeddedPostgres, *, slot: str | None = None) -> Iterator[EmbeddedPostgres]:
    """A hot standby that follows *primary*; with *slot*, it holds back vacuum there by that."""
    feedback = {"hot_standby_feedback": "on", "wal_receiver_status_interval": "1"}
    folder = Path(tempfile.mkdtemp(prefix="bgjob-standby-"))
    primary._hand_over(folder)
    data = folder / "data"
    try:
        subprocess.run(
            [
                primary._programs / "pg_basebackup",
                *("-D", data, "-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"),
                *("-X", "stream", "--write-recovery-conf", "--checkpoint=fast"),
                *(("-C", "-S", slot) if slot else ()),
            ],
            check=True,
            user=primary._user,
            group=primary._group,
            extra_groups=None if primary._user is None else (),
            cwd="/",
        )
        with EmbeddedPostgres.start(
            data,
            settings={**DISPOSABLE, **(feedback if slot else {})},
            bin_dir=primary._programs,
        ) as standby:
            yield standby
    finally:
        shutil.rmtree(folder)


def ask(server: EmbeddedPostgres, sql: str) -> Any:
    """The one value that a query gives on a server."""
    url = server.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(sql.encode()).fetchone()
        return None if row is None else row[0]


def wait_for_replay(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Wait until the standby shows all that the primary has committed."""
    at = ask(primary, "SELECT pg_current_wal_lsn()")
    seen = f"SELECT pg_last_wal_replay_lsn() >= '{at}'"
    wait_until(lambda: ask(standby, seen), what="the standby")
