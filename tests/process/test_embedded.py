"""The embedded server: it starts for anybody, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import make_url

from sqlalchemy_bgjob._dev import embedded
from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres, EmbeddedPostgresError
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tuning import Tune

FAST = {"fsync": "off"}


def ask(url: str, question: str) -> object:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        answer = connection.execute(question.encode())
        return None if answer.description is None else answer.fetchone()


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which its new parent has yet to reap, does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can reach; pytest's own tmp_path is closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def temporary(
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Where the servers of a test put their temporary folders, which must all be gone."""
    tmp_path_factory.getbasetemp()  # pytest's own folder stays where it is
    folder = open_folder / "t"
    folder.mkdir()
    folder.chmod(0o1777)  # as /tmp is
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_it_answers_on_tcp_and_socket_and_leaves_nothing(temporary: Path):
    """It never runs as root, Ctrl-C does not reach it, and it may be stopped twice."""
    with EmbeddedPostgres.start(settings={**FAST, "work_mem": "5MB"}) as server:
        assert ask(server.url, "SHOW work_mem") == ("5MB",)
        assert ask(server.socket_url, "SELECT inet_server_addr()") == (None,)
        assert server.url.startswith("postgresql+psycopg://postgres@127.0.0.1:")
        pid = server.pid
        owner = Path(f"/proc/{pid}").stat().st_uid
        assert owner != 0
        assert os.geteuid() == 0 or owner == os.geteuid()
        assert os.getpgid(pid) != os.getpgid(0)

    assert not alive(pid)
    assert list(temporary.iterdir()) == []
    server.stop()
    with pytest.raises(EmbeddedPostgresError, match="was stopped: start a new one"):
        _ = server.pid


@pytest.mark.parametrize("installed", ["psycopg", "psycopg2"])
def test_its_url_names_a_driver_that_is_there(installed: str, monkeypatch: pytest.MonkeyPatch):
    """A server that is only made, and not started, has a URL too."""
    monkeypatch.setattr(embedded, "is_installed", lambda driver: driver == installed)
    server = EmbeddedPostgres(home=Path("/t"), data_dir=Path("/t"), settings={}, account=None)

    assert server.url == f"postgresql+{installed}://postgres@127.0.0.1:0/postgres"
    assert server.socket_url == f"postgresql+{installed}://postgres@/postgres?host=/t&port=0"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_the_address_and_the_data(mode: embedded.StopMode):
    with EmbeddedPostgres.start(settings=FAST) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
        url, pid = server.url, server.pid

        server.restart(mode)

        assert server.url == url
        assert server.pid != pid
        assert ask(server.url, "SELECT n FROM kept") == (7,)
        assert ("was not properly shut down" in server.log) == (mode == "immediate")


def test_a_named_folder_keeps_the_data(open_folder: Path, temporary: Path):
    folder = open_folder / "deep" / "data"
    with EmbeddedPostgres.start(folder, FAST) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert list(temporary.iterdir()) == []

    with EmbeddedPostgres.start(folder, FAST) as server:
        assert ask(server.url, "SELECT n FROM kept") == (7,)


def test_it_dies_with_a_process_that_is_killed(temporary: Path):
    """Nobody runs an exit handler after SIGKILL; the next run must not find a stale server."""
    program = (
        "from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres.start(settings={'fsync': 'off'})\n"
        "print(server.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        assert list(temporary.iterdir()) != []

        parent.kill()

    wait_until(lambda: not alive(pid), what="the server is gone")
    wait_until(lambda: not list(temporary.iterdir()), what="the folder is gone")


def test_a_first_start_that_is_interrupted_can_be_repeated(open_folder: Path, temporary: Path):
    """Ctrl-C while the cluster is made leaves neither a half of it nor a program that goes on."""
    code = """if True:
        import signal, sys, tempfile
        from pathlib import Path
        from sqlalchemy_bgjob.testing import EmbeddedPostgres
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tempfile.tempdir = sys.argv[2]
        EmbeddedPostgres.start(Path(sys.argv[1]))
        signal.pause()
    """
    data = open_folder / "data"
    starting = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(temporary)], stderr=subprocess.PIPE
    )
    wait_until((data / "PG_VERSION").exists, 60, what="the begin of initdb")
    starting.send_signal(signal.SIGINT)
    _, errors = starting.communicate(timeout=60)

    assert b"KeyboardInterrupt" in errors
    assert list(temporary.iterdir()) == []
    with EmbeddedPostgres.start(data, settings=FAST) as server:
        assert ask(server.url, "SELECT 1") == (1,)


def test_a_frozen_server_is_stopped_all_the_same(tune: Tune, temporary: Path):
    server = EmbeddedPostgres.start(settings=FAST)
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    tune(embedded, STOP_TIMEOUT=0.1)

    server.stop()

    assert not alive(pid)
    assert list(temporary.iterdir()) == []


def test_a_server_that_died_can_be_started_again():
    with EmbeddedPostgres.start(settings=FAST) as server:
        url = server.url
        os.kill(server.pid, signal.SIGQUIT)
        wait_until(lambda: not alive(server.pid))

        server.restart()

        assert ask(url, "SELECT 1") == (1,)


@pytest.fixture
def closed_wheel(tmp_path: Path) -> Path:
    """The programs of the wheel in a folder that only its owner may enter."""
    programs = embedded._wheel_programs()
    site_packages, package = programs.parents[2], programs.parents[1]
    for folder in site_packages.glob(f"{package.name}*"):
        if folder.suffix in {"", ".libs"}:
            shutil.copytree(folder, tmp_path / "closed" / folder.name)
    (tmp_path / "closed").chmod(0o700)
    return tmp_path / "closed" / programs.relative_to(site_packages)


def test_a_wheel_that_its_account_cannot_reach_is_copied(
    closed_wheel: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
):
    """A virtual environment below /root is closed to the account that the server runs as."""
    monkeypatch.setattr(embedded, "_wheel_programs", lambda: closed_wheel)

    with EmbeddedPostgres.start(settings=FAST) as server:
        assert ask(server.url, "SELECT 1") == (1,)

    assert closed_wheel.parents[2].stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []


def test_programs_that_may_not_be_run_are_named(tmp_path: Path):
    (tmp_path / "postgres").write_text("#!/bin/sh\n")

    with pytest.raises(EmbeddedPostgresError, match=f"may not run the programs in '{tmp_path}'"):
        EmbeddedPostgres.start(bin_dir=tmp_path)


def test_a_port_that_was_just_taken_is_given_up(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = embedded._free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))

        with EmbeddedPostgres.start(settings=FAST) as server:
            assert server.port == free


def test_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("random.randrange", lambda *limits: port)

        with pytest.raises(EmbeddedPostgresError, match="no free port"):
            embedded._free_port()


def test_a_bad_setting_is_told_in_the_servers_words(temporary: Path):
    with pytest.raises(EmbeddedPostgresError, match='parameter "work_mem": "many"'):
        EmbeddedPostgres.start(settings={"work_mem": "many"})

    assert list(temporary.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(open_folder: Path, temporary: Path):
    (open_folder / "data").mkdir()
    (open_folder / "data" / "letter.txt").write_text("mine")

    with pytest.raises(EmbeddedPostgresError, match="choose an empty folder"):
        EmbeddedPostgres.start(open_folder / "data")

    assert (open_folder / "data" / "letter.txt").read_text() == "mine"
    assert list(temporary.iterdir()) == []


def test_a_server_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tune: Tune, temporary: Path
):
    tune(embedded, START_TIMEOUT=0.0)
    monkeypatch.setattr(EmbeddedPostgres, "_is_ready", lambda self, pid: False)

    with pytest.raises(EmbeddedPostgresError, match="did not start"):
        EmbeddedPostgres.start(settings=FAST)

    assert list(temporary.iterdir()) == []


def test_without_the_wheel_the_error_tells_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(EmbeddedPostgresError, match=r'pip install "sqlalchemy-bgjob\[embedded\]"'):
        EmbeddedPostgres.start()


def test_a_folder_without_programs_is_named(open_folder: Path):
    with pytest.raises(EmbeddedPostgresError, match=f"no program 'postgres' in '{open_folder}'"):
        EmbeddedPostgres.start(bin_dir=open_folder)


def test_windows_users_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(EmbeddedPostgresError, match="--database-url"):
        EmbeddedPostgres.start()


class Accounts:
    """Who runs the test, and which accounts there seem to be."""

    def __init__(self) -> None:
        self.uid = 0
        self.known: dict[str, Any] = {}


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Accounts:
    accounts = Accounts()
    monkeypatch.setattr("os.geteuid", lambda: accounts.uid)
    monkeypatch.setattr("pwd.getpwnam", lambda name: accounts.known[name])
    return accounts


def test_root_without_another_account_is_told_so(accounts: Accounts):
    with pytest.raises(EmbeddedPostgresError, match="refuses to run as root"):
        EmbeddedPostgres.start()


def test_nobody_will_do_where_there_is_no_postgres(accounts: Accounts):
    accounts.known["nobody"] = account = pwd.getpwall()[-1]

    assert embedded._unprivileged_account() == account
    accounts.uid = 1000
    assert embedded._unprivileged_account() is None, "who is not root keeps the account"
