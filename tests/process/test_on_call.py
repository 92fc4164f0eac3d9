"""The night on call of docs/guides/command_line.md, from its commands as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from support import cli_app as app
from support.cli import add

if TYPE_CHECKING:
    from sqlalchemy import Engine

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "command_line.md"
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(Z| UTC)"


def told(page: str) -> list[tuple[str, list[str]]]:
    """Each command of the story, with the lines that the page shows of it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


def pattern(line: str) -> str:
    """What the line must look like: moments and durations may differ."""
    parts = re.split(rf"({MOMENT}|\d+\.\d s)", line)
    return "".join(
        re.escape(part) if place % 3 == 0 else ("" if place % 3 == 2 else r"[\d:. -]+(Z| UTC|s)")
        for place, part in enumerate(parts)
        if part is not None
    )


def test_the_night_on_call_goes_as_told(tables: Engine, tmp_path: Path) -> None:
    """No SQL and no Python between a provider that is down and a queue that runs again."""
    for number in range(4):
        add(tables, app.note, "x", queue="mail", id=f"waiting-{number}")
    dead = text(
        "INSERT INTO bgjob_dead_job (id, job_id, queue, type, arg, attempt, lease, last_error,"
        " next_run_at, job_created_at, job_updated_at, moved_at) VALUES (:id, :id, 'mail',"
        " 'send_receipt', CAST('{\"order\": 9}' AS bytea), 20, 1, :error, now(), now(), now(),"
        " now())"
    )
    with tables.begin() as connection:
        refused = [
            {"id": f"order-{number}", "error": "ConnectionError: refused"}
            for number in range(4_999)
        ]
        connection.execute(dead, refused)
        connection.execute(dead, {"id": "receipt-9", "error": "KeyError: 'order_id'"})
    environment = {
        "BGJOB_DATABASE_URL": tables.url.render_as_string(hide_password=False),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    story = told(PAGE.read_text("utf-8").partition("## A night on call")[2])
    assert len(story) > 8

    printed: dict[str, str] = {}
    for command, lines in story:
        program, *words = shlex.split(command)
        assert program == "bgjob"
        done = subprocess.run(
            [sys.executable, "-m", "sqlalchemy_bgjob", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        printed[command] = done.stdout
        if lines:
            shown = "\n".join(map(pattern, lines))
            assert re.fullmatch(shown, done.stdout.rstrip("\n")), (shown, done.stdout)

    assert '"order": 9' in printed["bgjob jobs show receipt-9"]
    assert "mail" in printed["bgjob queues"]
    with tables.connect() as connection:
        arg = connection.scalar(text("SELECT arg FROM bgjob_job WHERE id = 'receipt-9'"))
        queued = connection.scalar(text("SELECT count(*) FROM bgjob_job WHERE queue = 'mail'"))
        paused = connection.scalar(text("SELECT count(*) FROM bgjob_control"))
    assert (bytes(arg), queued, paused) == (b'{"order_id":9}', 5_004, 0)
