"""The log of the command line: text or JSON, whatever is logged and whoever reads."""

from __future__ import annotations

import itertools
import json
import logging
import re
import signal
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy_bgjob._process import logs, process, runners
from sqlalchemy_bgjob._process.logs import JsonFormatter
from sqlalchemy_bgjob._process.signals import Requests
from support import cli_app as app
from support.cli import add, notes
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from sqlalchemy import Engine

    from support.commands import Command
    from support.tuning import Tune


def test_json_logs_are_one_object_a_line_and_nothing_else(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    command = start(
        *("worker", "support.cli_app:functions", "--database-url", database_url),
        *("--log-format", "json", "--log-level", "debug"),
        *("--lifespan", "support.cli_app:lifespan"),
    )
    add(tables, app.log, "fine", headers={"request_id": "r-1"})
    add(tables, app.note, "fine")
    add(tables, app.fail, "the words of the handler")
    wait_until(lambda: notes(tables), 60)
    command.says("next attempt in")
    command.says("fine, state")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0

    assert command.stdout == ""
    lines = [json.loads(line) for line in command.stderr.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"])
    logged = next(line for line in lines if line["logger"] == "shop")
    assert logged["message"] == f"fine, state {{'pid': {command.pid}}}"
    assert logged.keys() >= {"job_id", "job_type", "queue", "attempt", "request_id"}
    assert (logged["job_type"], logged["attempt"], logged["request_id"]) == ("log", 1, "r-1")
    done = next(line for line in lines if "(note" in line["message"])
    assert (done["job_type"], done["queue"], done["attempt"]) == ("note", "default", 1)
    failed = next(line for line in lines if "next attempt" in line["message"])
    assert failed["level"] == "warning"
    assert failed["error"] == "ValueError: the words of the handler"
    assert failed["place"].endswith(" in fail")
    assert (failed["attempt"], failed["max_attempts"]) == (1, 20)


def test_json_logs_hold_the_reason_of_an_exit_too(
    modules: Path, start: Callable[..., Command]
) -> None:
    command = start("worker", "shopbroken:jobs", "--log-format", "json", cwd=modules)

    assert command.wait() == 2
    (line,) = [json.loads(line) for line in command.stderr.splitlines()]
    assert line["level"] == "error"
    assert line["exit_code"] == 2
    assert "importing 'shopbroken' failed" in line["message"]
    assert "ZeroDivisionError" in line["exception"]


def test_json_logs_hold_warnings_and_uncaught_exceptions(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import threading, warnings\n"
        "warnings.warn('old')\n"
        "def fail(): raise ValueError('thread')\n"
        "thread = threading.Thread(target=fail, name='mine'); thread.start(); thread.join()\n"
    )
    command = start("worker", "noisy:jobs", "--log-format", "json", cwd=tmp_path)

    assert command.wait() == 2
    messages = [json.loads(line)["message"] for line in command.stderr.splitlines()]
    assert any("UserWarning: old" in message for message in messages)
    assert "uncaught ValueError in thread 'mine'" in messages


def test_an_uncaught_exception_is_logged_too(tmp_path: Path) -> None:
    code = """
        from sqlalchemy_bgjob._process import logs
        logs.configure("json", "info", None)
        raise LookupError("outside of everything")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    line = json.loads(done.stderr)
    assert (line["level"], line["message"]) == ("critical", "uncaught LookupError")
    assert "outside of everything" in line["exception"]


def test_alembics_plugins_do_not_announce_themselves(tmp_path: Path) -> None:
    """Flask-Migrate imports Alembic in the worker, where these lines would come before its own."""
    code = """
        from sqlalchemy_bgjob._process import logs
        logs.configure("text", "{}")
        import alembic
    """

    def said(level: str) -> str:
        program = [sys.executable, "-c", textwrap.dedent(code).format(level)]
        return subprocess.run(program, capture_output=True, text=True, check=True).stderr

    assert "plugin" not in said("info")
    assert "setup plugin alembic" in said("debug")


def test_a_record_becomes_json_whatever_it_holds() -> None:
    formatter = JsonFormatter("2")
    record = logging.makeLogRecord(
        {"msg": "hello %s", "args": ("\ud800\n",), "levelname": "INFO", "name": "x", "created": 0.0}
    )
    record.number, record.thing, record.process_ = 3, object, float("nan")  # type: ignore[attr-defined]
    record.stack_info = "Stack"

    line = json.loads(formatter.format(record))

    assert "\n" not in formatter.format(record)
    assert line["message"] == "hello \ud800\n"
    assert line["time"] == "1970-01-01T00:00:00.000+00:00"
    assert line["process"] == "2"
    assert line["process_"] == "nan"
    assert line["stack"] == "Stack"


def test_a_line_of_a_handler_ends_with_its_job() -> None:
    """Not our own lines, which say it by themselves; and no value makes a line of its own."""
    fields = {"job_id": "j 1", "job_type": "send", "queue": "mail", "attempt": 2}

    def line(name: str, **extra: Any) -> str:
        record = logging.makeLogRecord({"msg": "hello", "name": name, "levelname": "INFO", **extra})
        return logs.text_formatter(None).format(record).partition(" INFO ")[2]

    assert line("shop") == "shop: hello"
    assert line("shop", queue="mail") == "shop: hello"
    assert line("shop", **fields) == (
        'shop: hello [job_id="j 1" job_type=send queue=mail attempt=2]'
    )
    assert line("shop", **fields, request_id="r\n1", other=1).endswith(' request_id="r\\n1"]')
    assert line("sqlalchemy_bgjob.jobs", **fields) == "sqlalchemy_bgjob.jobs: hello"


def test_of_lines_that_nobody_reads_only_some_wait(
    monkeypatch: pytest.MonkeyPatch, tune: Tune
) -> None:
    """Each in a thread of its own: a process that crashes for days would need ever more."""
    read, said = threading.Event(), []

    def log(level: int, words: str) -> None:
        read.wait(60)
        said.append(words)

    monkeypatch.setattr(logs.logger, "log", log)
    tune(logs, _MOST_UNSAID=1)
    logs.say(logging.INFO, "first")
    logs.say(logging.INFO, "second")
    read.set()
    wait_until(lambda: said)

    tune(logs, _MOST_UNSAID=2)
    logs.say(logging.INFO, "third")
    assert said == ["first", "third"]


def test_a_line_that_no_thread_is_left_for_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever handles a signal says it, and must go on."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    asked: list[float | None] = []
    worker: Any = SimpleNamespace(request_stop=lambda timeout=None: asked.append(timeout))
    main = process._Process(runners.WorkerOptions(app="unused"))
    main._own = Requests(itertools.count(step=2.0).__next__)

    with main._events:
        for _ in range(2):
            main._on_signal(signal.SIGTERM, None)
            main._stop(worker, "signal")

    assert asked == [None, 0.0]
