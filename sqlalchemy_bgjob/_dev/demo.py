"""The demo: jobs on real input, with failures and a killed worker, and a recount at the end.

1. The demo starts a PostgreSQL (or is given one), and makes the tables in a separate schema.
2. Two worker processes start, with default settings, by the same command that users run.
3. For each file of a folder one transaction inserts a row and enqueues a job. Every twentieth job
   fails at its first attempt. One more job is for a file that does not exist.
4. A few jobs in the middle wait for a lock that the demo holds. A worker that waits for it is in
   the middle of a job, its row written and not committed: the demo kills it by SIGKILL, and then
   releases the lock. If the demo itself dies, its lock and its workers end with it.
5. When no job is left, the demo reads every file again, and compares it with what the jobs wrote.
"""

import contextlib
import os
import secrets
import signal
import stat
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Final

import click

from .._db.sessions import application_name
from .._process.exits import DATABASE, FAILED, OK, SIGNALLED, USAGE, CommandError
from .._process.supervisor import Child
from .demo_report import Report, progress, what_to_read_next

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.orm import Session

WORKERS: Final = 2
SCHEMA_VARIABLE: Final = "BGJOB_DEMO_SCHEMA"
FAILS_FIRST_EVERY: Final = 20
MOST_WAITING: Final = 8
"""How many jobs wait for the kill: fewer than a worker's slots, so its other jobs go on."""
STALLED_AFTER: Final = 90.0
"""Seconds without any progress after which the demo gives up."""
_SKIPPED: Final = frozenset({"__pycache__", "site-packages", "dist-packages"})


def run_demo(folder: Path | None, *, database_url: str | None, limit: int | None) -> int:
    """Run the demo and print its report; the exit code.

    Raises:
        CommandError: There is no file or no database, or a worker failed.
    """
    files = find_files(folder, limit)
    if not files:
        raise CommandError(USAGE, f"there is no readable file in {str(folder)!r}")
    interruption = _Interruption()
    for number in _SIGNALS:
        signal.signal(number, interruption.on_signal)
    where = "" if database_url is not None else ", starting PostgreSQL"
    click.echo(f"{len(files)} files{where}", err=True)
    with contextlib.ExitStack() as stack:
        try:
            url, schema = _database(stack, database_url)
            report = _Demo(stack, url, schema, files, interruption).run()
            interruption.check()
        finally:
            # A second Ctrl-C must not leave things behind.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
    for line in report.lines():
        click.echo(line)
    if not report.succeeded:
        return FAILED
    click.echo(what_to_read_next(Path(__file__).parents[1]))
    return OK


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interruption:
    """A signal that ends the demo.

    The handler raises at once, so no wait delays it, and remembers the signal: an exception raised
    in a finalizer or a callback would be lost.
    """

    def __init__(self) -> None:
        self._exit_code: int | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal, and exit."""
        self._exit_code = SIGNALLED + number
        self.check()

    def check(self) -> None:
        """Exit if there was a signal."""
        if self._exit_code is not None:
            raise SystemExit(self._exit_code)


# ---- the input ------------------------------------------------------------------------------


def find_files(folder: Path | None, limit: int | None = None) -> list[bytes]:
    """The readable files of a folder, without hidden ones; by default Python's own sources."""
    ending = ""
    if folder is None:
        folder, ending = Path(sysconfig.get_paths()["stdlib"]), ".py"
    found: list[bytes] = []
    for parent, folders, names in os.walk(folder.absolute()):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in _SKIPPED)
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or not name.endswith(ending) or not _is_readable_file(path):
                continue
            found.append(os.fsencode(path))
            if len(found) == limit:
                return found
    return found


def _is_readable_file(path: Path) -> bool:
    # No pipes or devices: reading them would never end.
    try:
        return stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK)
    except OSError:
        return False


def _database(stack: contextlib.ExitStack, given: str | None) -> tuple["URL", str]:
    """The database, and the schema that is dropped at the end."""
    from .._process.urls import database_url, sync_url
    from .embedded import EmbeddedPostgres, EmbeddedPostgresError

    if given is not None:
        url = sync_url(database_url(given))
        if url is None:
            raise CommandError(
                USAGE, 'the demo\'s handler is a function; pip install "sqlalchemy-bgjob[psycopg]"'
            )
        return url, f"bgjob_demo_{secrets.token_hex(4)}"
    try:
        server = stack.enter_context(EmbeddedPostgres.start())
    except EmbeddedPostgresError as error:
        raise CommandError(FAILED, str(error)) from None
    return database_url(server.url), "bgjob_demo"


# ---- the run --------------------------------------------------------------------------------


class _Demo:
    """One run, from the tables to the recount."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        url: "URL",
        schema: str,
        files: list[bytes],
        interruption: _Interruption | None = None,
    ) -> None:
        from sqlalchemy import create_engine

        self._stack, self._url, self._schema, self._files = stack, url, schema, files
        self._interruption = interruption or _Interruption()
        self._engine: Engine = create_engine(url, pool_size=5)
        self._stack.callback(self._engine.dispose)
        self._lock = secrets.randbits(62)
        self._workers: list[Child] = []
        self._logs: list[IO[bytes]] = []
        self._report = Report(len(files))
        self._enqueued = 0
        self._enqueue_error: BaseException | None = None
        self._stopping = False
        self._victim: int | None = None
        self._worker_id = 0
        self._killed_at = 0.0

    def run(self) -> Report:
        """Run the demo from start to end; its report."""
        # The application reads its schema at import, here as in the workers.
        os.environ[SCHEMA_VARIABLE] = self._schema
        self._make_tables()
        holder = self._stack.enter_context(self._engine.connect())
        holder = holder.execution_options(isolation_level="AUTOCOMMIT")
        holder.exec_driver_sql(f"SELECT pg_advisory_lock({self._lock})")
        self._start_workers()
        begun = time.monotonic()
        enqueuing = threading.Thread(target=self._enqueue_all, daemon=True)
        enqueuing.start()
        self._stack.callback(self._stop_enqueuing, enqueuing)
        with progress(self._report.jobs) as show:
            self._watch(show, lambda: holder.exec_driver_sql("SELECT pg_advisory_unlock_all()"))
        self._report.seconds = time.monotonic() - begun
        self._stop_workers()
        self._recount()
        return self._report

    def _make_tables(self) -> None:
        from sqlalchemy.exc import DBAPIError

        from .. import schema
        from .._db.errors import database_message

        try:
            with self._engine.begin() as connection:
                schema.migrate(connection, schema=self._schema)
                self._stack.callback(self._drop_schema)
                from . import demo_app as app

                app.Base.metadata.create_all(connection)
        except DBAPIError as error:
            message = f"the database refuses: {database_message(error)}"
            raise CommandError(DATABASE, message) from None

    def _drop_schema(self) -> None:
        from sqlalchemy.schema import DropSchema

        with self._engine.begin() as connection:
            connection.execute(DropSchema(self._schema, cascade=True, if_exists=True))

    # ---- workers ----------------------------------------------------------------------------

    def _start_workers(self) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("BGJOB_")
        }
        environment["BGJOB_DATABASE_URL"] = self._url.render_as_string(hide_password=False)
        environment[SCHEMA_VARIABLE] = self._schema
        for number in range(1, WORKERS + 1):
            log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
            self._stack.enter_context(log)
            child = Child(
                ["worker", "sqlalchemy_bgjob._dev.demo_app:jobs"],
                name=str(number),
                environment=environment,
                stderr=log,
            )
            self._workers.append(child)
            self._logs.append(log)
            self._stack.callback(_end, child)

    def _check_workers(self) -> None:
        for child, log in zip(self._workers, self._logs, strict=True):
            code = child.process.poll()
            if code is not None and child.process.pid != self._victim:
                raise CommandError(
                    FAILED, f"worker {child.name} exited with {code}; it said:\n{_tail(log)}"
                )

    def _stop_workers(self) -> None:
        """Stop the workers as a deployment does: by one SIGTERM; they drain and exit with 0."""
        for child in self._workers:
            child.send(signal.SIGTERM)
        for child, log in zip(self._workers, self._logs, strict=True):
            code = child.process.wait(timeout=60)
            if code != OK and child.process.pid != self._victim:
                self._report.problems.append(
                    f"worker {child.name} did not drain: it exited with {code}; {_tail(log)}"
                )

    def _kill_one(self, release: Callable[[], object]) -> None:
        """Kill a worker that is in the middle of a job, if there is one, and release the lock."""
        from sqlalchemy import select

        from .demo_app import jobs

        pids = {child.process.pid: child for child in self._workers}
        with self._engine.begin() as connection:
            waiting = connection.exec_driver_sql(_WAITING % self._lock).scalars().all()
            row = jobs.WorkerRow
            workers = connection.execute(select(row.id, row.pid).where(row.pid.in_(pids))).all()
        names = {application_name(worker_id): (worker_id, pid) for worker_id, pid in workers}
        found = next((names[name] for name in waiting if name in names), None)
        if found is None:
            return
        worker_id, self._victim = found
        self._killed_at = time.monotonic()
        pids[self._victim].send(signal.SIGKILL)
        pids[self._victim].process.wait()
        self._worker_id = worker_id
        release()

    # ---- the main loop ----------------------------------------------------------------------

    def _enqueue_all(self) -> None:
        """One transaction for each file, as a web application has one for each request."""
        from sqlalchemy.orm import Session

        try:
            for number, path in enumerate(self._plan()):
                if self._stopping:
                    return
                with Session(self._engine) as session, session.begin():
                    self._enqueue(session, number, path)
                self._enqueued += 1
        except BaseException as error:
            self._enqueue_error = error

    def _plan(self) -> list[bytes]:
        """The files, with one in the middle that does not exist."""
        missing = os.path.join(  # noqa: PTH118 - a Path can't be made of bytes
            os.path.dirname(self._files[0]),  # noqa: PTH120
            f"no such file {secrets.token_hex(8)}".encode(),
        )
        middle = len(self._files) // 2
        return [*self._files[:middle], missing, *self._files[middle:]]

    def _enqueue(self, session: "Session", number: int, path: bytes) -> None:
        from .._enqueue.one import enqueue
        from . import demo_app as app

        file = app.File(path=path)
        session.add(file)
        session.flush()
        middle = len(self._files) // 2
        waits = middle < number <= middle + MOST_WAITING
        arg = app.IndexFile(
            file.id,
            fails_first=number % FAILS_FIRST_EVERY == 0,
            waits_for=self._lock if waits else None,
        )
        enqueue(session, app.index_file, arg)

    def _stop_enqueuing(self, thread: threading.Thread) -> None:
        self._stopping = True
        thread.join(timeout=10)

    def _watch(self, show: Callable[[int], None], release: Callable[[], object]) -> None:
        """Wait until no job is left; meanwhile kill one worker."""
        done, changed_at = 0, time.monotonic()
        while True:
            self._interruption.check()
            self._check_workers()
            if self._enqueue_error is not None:
                raise self._enqueue_error
            all_enqueued = self._enqueued == self._report.jobs
            left, now_done = self._count()
            show(now_done)
            if all_enqueued and not left:
                return
            if now_done > done:
                done, changed_at = now_done, time.monotonic()
            elif time.monotonic() - changed_at > STALLED_AFTER:
                logs = "\n".join(_tail(log) for log in self._logs)
                raise CommandError(
                    FAILED, f"no job has ended for {STALLED_AFTER:g} s; the workers said:\n{logs}"
                )
            if self._victim is None:
                self._kill_one(release)
            time.sleep(0.05)

    def _count(self) -> tuple[int, int]:
        """How many jobs are left, and how many have ended."""
        from sqlalchemy import func, select

        from .demo_app import Entry, jobs

        def count(table: Any) -> Any:
            return select(func.count()).select_from(table).scalar_subquery()

        with self._engine.begin() as connection:
            left, entries, dead = connection.execute(
                select(count(jobs.Job), count(Entry), count(jobs.DeadJob))
            ).one()
            if self._victim is not None and self._report.takeover_seconds is None:
                # The most over time: the server may still commit a claim sent before the kill.
                claimed = select(func.count()).where(jobs.Job.claimed_by == self._worker_id)
                held = connection.execute(claimed).scalar_one()
                self._report.held_by_victim = max(held, self._report.held_by_victim)
                if not held:
                    self._report.takeover_seconds = time.monotonic() - self._killed_at
        return left, entries + dead

    # ---- the recount ------------------------------------------------------------------------

    def _recount(self) -> None:
        """Read every file again, without the queue, and compare."""
        from sqlalchemy import select
        from sqlalchemy.orm import Session

        from .demo_app import Entry, File, count, jobs

        report = self._report
        with Session(self._engine) as session:
            dead = session.scalars(select(jobs.DeadJob.crashes)).all()
            report.dead = len(dead)
            report.recovered = sum(crashes > 0 for crashes in dead)
            entries: dict[bytes, list[Entry]] = {path: [] for path in self._files}
            for path, entry in session.execute(select(File.path, Entry).join(Entry)):
                report.entries += 1
                report.retries += entry.attempt - 1 - entry.crashes
                report.recovered += entry.crashes > 0
                if path in entries:
                    entries[path].append(entry)
                else:
                    report.problems.append(f"{os.fsdecode(path)}: indexed, though it is not there")
        for path, found in entries.items():
            name = os.fsdecode(path)
            if len(found) != 1:
                report.problems.append(f"{name}: {len(found)} entries instead of 1")
                continue
            try:
                expected = count(path)
            except OSError as error:
                report.problems.append(f"{name}: can't be read any more: {error.strerror}")
                continue
            if expected != (found[0].lines, found[0].words, found[0].sha256):
                report.problems.append(f"{name}: the entry is not what the file holds")


# Sessions that wait for the lock; pg_locks shows its key in two halves.
_WAITING: Final = """
    SELECT a.application_name
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND NOT l.granted
      AND ((l.classid::bigint << 32) | l.objid::bigint) = %d
"""


def _end(child: Child) -> None:
    """Kill a worker that still runs, and clean up."""
    child.kill()
    child.process.wait()
    child.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-20:])
