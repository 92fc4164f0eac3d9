"""PgBouncer, mostly in transaction mode: a session of the server lasts for one transaction.

Version 1.18, which Debian 12 has, keeps no prepared statements either: the strict case.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
from sqlalchemy import Engine, event, make_url

from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

VARIABLE = "BGJOB_TEST_POOLER"
"""With a value, all tests go through a pooler."""

POOLED: Mapping[str, Mapping[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "psycopg2": {},
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"bgjob_{uuid.uuid4()}",
    },
}
"""What docs/operating.md tells to pass as ``connect_args``, by driver."""

NEEDS_SESSIONS: Mapping[str, str] = {
    "test_bench.py::test_bench_prints": "a command that is given no connect_args",
    "test_worker_command.py::test_a_worker_runs_jobs": "a command that is given no connect_args",
    "test_direct_statement.py::test_a_claim_gives_the_rows": "statements that commit by themselves",
    "test_direct_statement.py::test_errors": "statements that commit by themselves",
    "test_direct_statement.py::test_where_somebody_listens": "options at the start",
    "test_control.py::test_a_claim_commits_by_itself": "a temporary table",
    "test_control.py::test_plans_are_kept": "a setting of a session",
    "test_control.py::test_one_plan": "a setting of a session",
    "test_doctor.py::test_a_healthy": "finds the pooler",
    "test_doctor.py::test_a_real_worker_leaves": "finds the pooler",
    "test_doctor.py::test_the_command_prints": "finds the pooler",
    "test_doctor.py::test_what_a_role_lacks": "SET ROLE",
    "test_enqueue.py::test_workers_hear": "LISTEN",
    "test_examples.py": "applications that are given no connect_args",
    "test_grants.py::test_what_is_not_granted": "SET ROLE",
    "test_handlers.py::test_completed_with_the_writes_that_were_kept[asyncio-asyncpg-raw": "COMMIT",
    "test_handlers.py::test_no_connection_is_taken": "names of sessions",
    "test_inheritance.py::test_doctor_says": "finds the pooler",
    "test_lifecycle.py::test_who_is_told": "LISTEN",
    "test_listener.py::test_a_killed_listener": "LISTEN",
    "test_server_outage.py::test_a_listener": "LISTEN",
    "test_row_isolation.py::test_an_unreadable_row_goes_back": "LISTEN",
    "test_plans.py": "auto_explain and settings of a session",
    "test_pool_sharing.py::test_an_exhausted_pool": "names of sessions",
    "test_pool_sharing.py::test_without_a_pool": "counts of sessions",
    "test_kills_and_freezes.py::test_jobs_of_a_killed": "an end of a session that is seen at once",
    "test_rescue.py::test_a_beat_after_the_second_look": "ends of sessions",
    "test_rescue.py::test_a_beat_between_the_two_looks": "ends of sessions",
    "test_rescue.py::test_a_judge_never_finds_itself": "ends of sessions",
    "test_rescue.py::test_a_lost_connection": "ends of sessions",
    "test_rescue.py::test_a_worker_without_its_session": "ends of sessions",
    "test_rescue.py::test_a_worker_whose_loop": "ends of sessions",
    "test_rescue.py::test_another_session": "names of sessions",
    "test_rescue.py::test_every_worker_finds": "ends of sessions",
    "test_rescue.py::test_reset_statistics": "ends of sessions",
    "test_rescue.py::test_sessions_that_are_hidden": "options at the start",
    "test_session_scope.py::test_two_workers_on_an_engine_of_another_isolation_level[asyncio-asyncpg-"
    "autocommit engine]": "SQLAlchemy's own statements at the start commit by themselves",
    "test_session_routing.py": "options at the start",
    "test_supervisor.py::test_a_killed_process": "an end of a session that is seen at once",
}
"""What can't be as it is without a pooler, by the beginning of the tests' names, without folders.
``system/test_pooler.py`` shows what takes its place: polling, and rescue by silence."""

_INI = """\
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
admin_users = admin
pool_mode = {mode}
max_client_conn = 500
default_pool_size = {pool_size}
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer:
    """A pooler before a server, for as long as the block lasts.

    Args:
        server_url: Of the server, by TCP, with the user and password that all clients get.
        pool_size: Sessions of the server for each database.
        mode: Its ``pool_mode``.
    """

    def __init__(self, server_url: str, *, pool_size: int = 40, mode: str = "transaction") -> None:
        self._server = make_url(server_url)
        self._pool_size = pool_size
        self._mode = mode

    def url(self, server_url: str) -> str:
        """The URL of a database of the server, by way of the pooler."""
        changed = make_url(server_url).set(host="127.0.0.1", port=self.port).set(query={})
        return changed.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "PgBouncer is missing: apt-get install pgbouncer"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder = Path(tempfile.mkdtemp(prefix="bgjob-pooler-"))
        self._folder.chmod(0o755)  # for the account it runs under, as it refuses to be root
        self._write_settings(self._mode)
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, str(self._folder / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            user="nobody" if os.geteuid() == 0 else None,
        )
        wait_until(self._answers, what="PgBouncer")
        return self

    def _write_settings(self, mode: str) -> None:
        parts = {
            "host": self._server.host,
            "port": self._server.port,
            "user": self._server.username,
            "password": self._server.password,
        }
        server = " ".join(f"{name}={value}" for name, value in parts.items() if value is not None)
        (self._folder / "pgbouncer.ini").write_text(
            _INI.format(server=server, listen_port=self.port, pool_size=self._pool_size, mode=mode)
        )

    def change_mode(self, mode: str) -> None:
        """Change its ``pool_mode`` by RELOAD: for clients that are connected, too."""
        self._write_settings(mode)
        console = f"host=127.0.0.1 port={self.port} user=admin dbname=pgbouncer"
        with psycopg.connect(console, autocommit=True) as admin:
            admin.execute("RELOAD")

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder)


def needs_sessions(name: str) -> bool:
    """Whether a test can't be run through a pooler."""
    file, _, rest = name.partition("::")
    within_folder = f"{Path(file).name}::{rest}"
    return any(within_folder.startswith(beginning) for beginning in NEEDS_SESSIONS)


def connect_as_documented() -> None:
    """Let every engine of this process connect with what a pooler needs."""

    @event.listens_for(Engine, "do_connect")
    def connect(dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters.update(POOLED.get(dialect.driver.removesuffix("_async"), {}))
