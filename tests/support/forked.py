"""Commands as processes that start at once.

Each is a process of its own, with its own arguments, streams and exit code. It is forked from one
that has imported what commands import, which takes them most of a second each.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from types import TracebackType

TESTS = Path(__file__).parent.parent
"""Where ``support.cli_app`` can be imported from."""


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """What it printed, as one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Forked:
    """Runs commands, one after the other; a context manager."""

    def __init__(self, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BGJOB_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked"],
            cwd=TESTS,
            env={**clean, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, stdin: str = "") -> Done:
        """Run a command to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([words, stdin]) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)  # the end of its stdin is its own


def _serve() -> None:
    for package in ("cli", "_inspect", "_lifecycle", "_handlers", "_db", "schema"):
        path = f"sqlalchemy_bgjob.{package}"
        for module in pkgutil.iter_modules(importlib.import_module(path).__path__):
            importlib.import_module(f"{path}.{module.name}")
    for name in ("support.cli_app", "sqlalchemy.dialects.postgresql.psycopg", "psycopg"):
        importlib.import_module(name)
    for line in sys.stdin:
        words, stdin = json.loads(line)
        with ExitStack() as files:
            streams = [files.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            streams[0].write(stdin.encode())
            streams[0].seek(0)
            child = os.fork()
            if child == 0:
                for number, stream in enumerate(streams):
                    os.dup2(stream.fileno(), number)
                os._exit(_run(words))
            _, status = os.waitpid(child, 0)
            said = [_read(stream) for stream in streams[1:]]
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), *said]) + "\n")
        sys.stdout.flush()


def _read(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read().decode())


def _run(words: list[str]) -> int:
    from sqlalchemy_bgjob.cli import main

    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
