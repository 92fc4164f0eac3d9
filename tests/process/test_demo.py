"""The demo: real files, real processes, a real kill, and an honest count."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, insert, make_url, select, update
from sqlalchemy.orm import Session

from sqlalchemy_bgjob._dev import demo, demo_report
from sqlalchemy_bgjob._dev import demo_app as app
from sqlalchemy_bgjob._dev.demo import find_files
from sqlalchemy_bgjob._dev.demo_report import Report, what_to_read_next
from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres, EmbeddedPostgresError
from support.catalog import schemas
from support.commands import Command
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tuning import Tune


def write_files(folder: Path, count: int) -> Path:
    """Files of several lengths, in folders of a hundred."""
    for number in range(count):
        path = folder / f"part{number // 100}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"line {number} of some words\n" * (number % 50))
    return folder


def numbers(command: Command) -> dict[str, int]:
    """The table that was printed."""
    return {
        name.strip(): int(number)
        for name, number in re.findall(r"^(\w[\w ]+?) +(\d+)\b", command.stdout, re.MULTILINE)
    }


def processes_with(variable: str, value: str) -> dict[int, dict[str, str]]:
    """The environments of the processes that have this in theirs, by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            raw = (folder / "environ").read_bytes() if folder.name.isdecimal() else b""
            pairs = (line.partition(b"=") for line in raw.split(b"\0") if line)
            environment = {os.fsdecode(name): os.fsdecode(is_) for name, _, is_ in pairs}
            if environment.get(variable) == value:
                found[int(folder.name)] = environment
    return found


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where the demo puts what it needs: empty at the end, and no process that was told of it."""
    # Short: a Unix socket lies in it. The server's own account must be able to enter it.
    folder = Path("/tmp", f"demo{os.getpid()}-{abs(hash(tmp_path)) % 10**6}")
    folder.mkdir()
    folder.chmod(0o777)
    try:
        yield folder
        wait_until(
            lambda: not processes_with("TMPDIR", str(folder)), 30, what="the end of all processes"
        )
        wait_until(lambda: not list(folder.iterdir()), 10, what="an empty folder")
    finally:
        shutil.rmtree(folder)


# ---- whole runs ---------------------------------------------------------------------------------


def test_what_to_read_next_is_where_it_says(tmp_path: Path) -> None:
    """A wheel has no README.md beside it; a checkout has."""
    (tmp_path / "README.md").touch()  # of another package
    installed = what_to_read_next(tmp_path / "sqlalchemy_bgjob")
    assert "README.md in a checkout of the project" in installed
    assert "docs/reliability.md in a checkout of the project" in installed

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "reliability.md").touch()
    checkout = what_to_read_next(tmp_path / "sqlalchemy_bgjob")
    assert f"{tmp_path}/README.md" in checkout
    assert f"{tmp_path}/docs/tables.md" in checkout
    assert f"{tmp_path}/docs/reliability.md" in checkout
    assert "in a checkout of the project" not in checkout


def test_thirty_files_are_indexed_once_in_spite_of_a_kill(tmp_path: Path, temporary: Path) -> None:
    files = write_files(tmp_path / "files", 30)
    with Command(tmp_path, "demo", str(files), TMPDIR=str(temporary)) as command:
        assert command.wait(100) == 0, command.stderr + command.stdout

    assert "\nevery file exactly once: yes\n\nwhat to read next:\n" in command.stdout
    (application,) = re.findall(r"^  (/.*demo_app\.py):", command.stdout, re.MULTILINE)
    assert Path(application).exists()
    found = numbers(command)
    assert (found["files"], found["jobs"], found["dead"]) == (30, 31, 1)
    assert 1 <= found["retries"] <= 2
    assert found["recovered after the kill"] >= 1
    assert "31 of 31 jobs" in command.stderr


def test_a_given_database_is_left_as_it_was(
    engine: Engine, database_url: str, tmp_path: Path, temporary: Path
) -> None:
    """Three files, among them no text and a name that is not UTF-8."""
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)) * 100)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9 \xff.txt")).write_text(
        "no newline at the end"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE bgjob_job (id text)")
        before = schemas(engine)
    # A driver of coroutines, and settings for other workers: neither is the demo's.
    url = make_url(database_url).set(drivername="postgresql+asyncpg").render_as_string(False)
    with Command(
        *(tmp_path, "demo", str(folder), "--database-url", url),
        TMPDIR=str(temporary),
        BGJOB_QUEUE="others:1",
        BGJOB_LOG_LEVEL="error",
    ) as command:
        assert command.wait(100) == 0, command.stderr + command.stdout

    assert "every file exactly once: yes" in command.stdout
    assert numbers(command)["recovered after the kill"] >= 1
    assert schemas(engine) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_demo_leaves_nothing(
    engine: Engine, database_url: str, tmp_path: Path, temporary: Path, number: signal.Signals
) -> None:
    files = write_files(tmp_path / "files", 300)
    before = schemas(engine)
    with Command(
        *(tmp_path, "demo", str(files), "--database-url", database_url), TMPDIR=str(temporary)
    ) as command:
        command.says("of 301 jobs")
        command.signal(number)
        assert command.wait() == 128 + number

    assert schemas(engine) == before


def test_an_interruption_in_a_finalizer_is_not_lost() -> None:
    """Python drops what is raised there; the demo's loop raises it again."""
    interruption = demo._Interruption()
    interruption.check()
    with contextlib.suppress(SystemExit):
        interruption.on_signal(signal.SIGINT, None)

    with pytest.raises(SystemExit) as ended:
        interruption.check()
    assert ended.value.code == 130


def test_a_killed_demo_leaves_nothing_running(tmp_path: Path, temporary: Path) -> None:
    """The workers see the end of their pipe, and the embedded server that of its own."""
    files = write_files(tmp_path / "files", 300)
    with Command(tmp_path, "demo", str(files), TMPDIR=str(temporary)) as command:
        command.says("of 301 jobs")
        assert len(processes_with("TMPDIR", str(temporary))) > 3, "demo, workers, server"
        command.signal(signal.SIGKILL)
        command.wait()


def test_a_worker_that_ends_by_itself_is_a_failure(
    database_url: str, tmp_path: Path, temporary: Path
) -> None:
    """Not a success with one worker; its log is shown."""
    files = write_files(tmp_path / "files", 300)

    def first_worker() -> int | None:
        for pid, environment in processes_with("TMPDIR", str(temporary)).items():
            if environment.get("_BGJOB_SUPERVISED", "").endswith(":1"):
                return pid
        return None

    with Command(
        *(tmp_path, "demo", str(files), "--database-url", database_url), TMPDIR=str(temporary)
    ) as command:
        os.kill(wait_until(first_worker, 30, what="a worker") or 0, signal.SIGTERM)
        assert command.wait() == 1

    assert "Error: worker 1 exited with" in command.stderr
    assert "Traceback" not in command.stderr


def test_no_files_and_no_database_have_their_exit_codes(tmp_path: Path) -> None:
    with Command(tmp_path, "demo", str(tmp_path / "nothing")) as command:
        assert command.wait() == 2
    (tmp_path / "empty").mkdir()
    with Command(tmp_path, "demo", str(tmp_path / "empty")) as command:
        assert command.wait() == 2
    assert "there is no readable file in" in command.stderr
    url = "postgresql+psycopg://127.0.0.1:1/x"
    with Command(tmp_path, "demo", "--limit", "1", "--database-url", url) as command:
        assert command.wait() == 3
    assert "the database refuses: connection failed" in command.stderr


# ---- the input ----------------------------------------------------------------------------------


def test_the_standard_library_is_the_default() -> None:
    found = [Path(os.fsdecode(path)) for path in find_files(None)]

    root = Path(sysconfig.get_paths()["stdlib"])
    assert root / "asyncio" / "base_events.py" in found
    assert len(found) > 500
    assert {path.suffix for path in found} == {".py"}
    assert not any({"site-packages", "__pycache__"} & set(path.parts) for path in found)


def test_what_is_read_of_a_folder(tmp_path: Path) -> None:
    """Regular files: not hidden ones, nor what would never end."""
    for name in ("b.txt", "a", ".hidden", "sub/c", ".git/config", "__pycache__/d.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to("b.txt")

    found = [str(Path(os.fsdecode(path)).relative_to(tmp_path)) for path in find_files(tmp_path)]

    assert found == ["a", "b.txt", "linked", "sub/c"]
    assert find_files(tmp_path, 2) == [os.fsencode(tmp_path / name) for name in ("a", "b.txt")]


@pytest.mark.parametrize(
    ("content", "lines", "words"),
    [(b"", 0, 0), (b"one two\nthree", 2, 3), (b"\xff\x00 \xfe\n\n", 2, 2), (b"a\r\nb\r\n", 2, 2)],
)
def test_files_are_counted_as_bytes(tmp_path: Path, content: bytes, lines: int, words: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    counts = app.count(os.fsencode(path))

    assert (counts.lines, counts.words) == (lines, words)
    assert len(counts.sha256) == 64


# ---- the recount --------------------------------------------------------------------------------


def good() -> Report:
    return Report(
        files=3, seconds=2.0, entries=3, retries=1, dead=1, recovered=2, takeover_seconds=1.5
    )


def test_a_report_tells_what_happened() -> None:
    report = good()

    lines = list(report.lines())

    assert report.succeeded
    assert lines[-1] == "every file exactly once: yes"
    assert any(
        re.fullmatch(r"recovered after the kill +2  \(taken over 1.5 s .*", x) for x in lines
    )
    assert any(re.match(r"jobs per second +2 ", line) for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recovered": 0}, "no job had to be recovered"),
        ({"dead": 0}, "0 jobs are dead instead of 1"),
        ({"problems": ["a: 2 entries instead of 1"] * 12}, "and 2 more"),
    ],
)
def test_a_demo_that_has_shown_nothing_has_failed(change: dict[str, object], words: str) -> None:
    report = good()
    for name, value in change.items():
        setattr(report, name, value)

    assert not report.succeeded
    assert words in "\n".join(report.lines())
    expected = "no" if report.problems else "yes"
    assert list(report.lines())[-1] == f"every file exactly once: {expected}"


NOW = datetime.now(UTC)
DEAD = {
    "queue": "files",
    "type": "index_file",
    "lease": 1,
    "next_run_at": NOW,
    "job_created_at": NOW,
    "job_updated_at": NOW,
}


def test_the_recount_finds_what_went_wrong(engine: Engine, tmp_path: Path) -> None:
    """A double effect, a lost one, a wrong one, one too many, and a file that has gone."""
    for name in ("right", "double", "lost", "wrong", "gone"):
        (tmp_path / name).write_text(f"{name}\n")
    files = find_files(tmp_path)
    with contextlib.ExitStack() as stack:
        run = demo._Demo(stack, engine.url, app.SCHEMA, files)
        run._make_tables()
        with Session(engine) as session, session.begin():
            for path in [*files, b"/no/such/file"]:
                name = Path(os.fsdecode(path)).name
                file = app.File(path=path)
                session.add(file)
                session.flush()
                counts = app.Counts(1, 1, "0") if name == "file" else app.count(path)
                if name == "wrong":
                    counts = counts._replace(lines=2)
                for _ in range({"double": 2, "lost": 0}.get(name, 1)):
                    entry = app.Entry(file_id=file.id, attempt=3, crashes=1, **counts._asdict())
                    session.add(entry)
            session.execute(
                insert(app.jobs.models.dead_job).values(
                    [
                        {**DEAD, "id": "1", "job_id": "1", "crashes": 0},
                        {**DEAD, "id": "2", "job_id": "2", "crashes": 1},
                    ]
                )
            )
        (tmp_path / "gone").unlink()

        run._recount()

        report = run._report
    problems = sorted(problem.replace(str(tmp_path), "") for problem in report.problems)
    assert problems == [
        "/double: 2 entries instead of 1",
        "/gone: can't be read any more: No such file or directory",
        "/lost: 0 entries instead of 1",
        "/no/such/file: indexed, though it is not there",
        "/wrong: the entry is not what the file holds",
    ]
    assert (report.entries, report.retries) == (6, 6)
    assert (report.dead, report.recovered) == (2, 7), "a dead job may have been recovered too"
    assert schemas(engine) == ["information_schema", "public"]


def test_a_stalled_demo_gives_up(engine: Engine, tmp_path: Path, tune: Tune) -> None:
    """Instead of showing a bar for ever: here no worker was started."""
    tune(demo, STALLED_AFTER=0.2)
    (tmp_path / "a").touch()
    with contextlib.ExitStack() as stack:
        run = demo._Demo(stack, engine.url, app.SCHEMA, find_files(tmp_path))
        run._make_tables()
        with pytest.raises(demo.CommandError, match=r"no job has ended for 0\.2 s"):
            run._watch(lambda done: None, lambda: None)


def test_a_server_that_fails_or_a_missing_driver_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise EmbeddedPostgresError("no programs", "install them")

    monkeypatch.setattr(EmbeddedPostgres, "start", broken)
    with contextlib.ExitStack() as stack:
        with pytest.raises(demo.CommandError, match="no programs: install them"):
            demo._database(stack, None)
        monkeypatch.setattr("sqlalchemy_bgjob._process.urls.sync_url", lambda url: None)
        with pytest.raises(demo.CommandError, match="handler is a function"):
            demo._database(stack, "postgresql+asyncpg://h/d")


def test_a_worker_that_does_not_drain_is_a_problem(engine: Engine, tmp_path: Path) -> None:
    class Ended:
        name = "2"

        def __init__(self) -> None:
            self.process = self
            self.pid = 1

        def send(self, number: int) -> None: ...

        def wait(self, timeout: float) -> int:
            return 1

    with contextlib.ExitStack() as stack:
        run = demo._Demo(stack, engine.url, app.SCHEMA, [])
        run._workers = [Ended()]
        run._logs = [io.BytesIO(b"its last words")]
        run._stop_workers()

        assert run._report.problems == ["worker 2 did not drain: it exited with 1; its last words"]


def test_a_failed_enqueue_is_a_failed_demo(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with contextlib.ExitStack() as stack:
        run = demo._Demo(stack, engine.url, app.SCHEMA, find_files(tmp_path))
        run._make_tables()
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE {app.SCHEMA}.bgjob_job CASCADE")
        run._enqueue_all()
        with pytest.raises(Exception, match="bgjob_job"):
            run._watch(lambda done: None, lambda: None)


# ---- the bar ------------------------------------------------------------------------------------


class Terminal:
    """A stderr that is one."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.written = ""

    def write(self, words: str) -> int:
        self.written += words
        return len(words)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, rich: bool) -> None:
    """Of rich where it is installed, else of click."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)

    with demo_report.progress(8) as show:
        show(3)
        show(8)

    assert "jobs" in terminal.written
    assert ("8/8" in terminal.written) is rich
    assert ("100%" in terminal.written) is not rich


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = demo_report._Lines(3)
    for done in (0, 1, 2, 3):
        lines.show(done)

    assert capsys.readouterr().err.splitlines() == ["0 of 3 jobs", "3 of 3 jobs"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_failed_attempt_leaves_nothing_and_no_file_is_dead(
    engine: Engine, tmp_path: Path, lost: int
) -> None:
    """The demo's own application, a job at a time; an attempt that was lost is none that failed."""
    (tmp_path / "a").write_text("x")
    with contextlib.ExitStack() as stack:
        run = demo._Demo(stack, engine.url, app.SCHEMA, find_files(tmp_path))
        run._make_tables()
        with Session(engine) as session, session.begin():
            session.add_all(
                [app.File(id=1, path=os.fsencode(tmp_path / "a")), app.File(id=2, path=b"/")]
            )
            session.flush()
            session.add(app.index_file.job(app.IndexFile(1, fails_first=True)))
            session.add(app.index_file.job(app.IndexFile(2)))
            session.flush()
            session.execute(update(app.jobs.Job).values(attempt=lost, crashes=lost))
        outcomes = [type(app.jobs.work_one(engine, "files")).__name__ for _ in range(3)]

        with Session(engine) as session:
            assert session.scalars(select(app.Entry.id)).all() == []
    assert outcomes == ["Retry", "MoveToDlq", "NoneType"]
