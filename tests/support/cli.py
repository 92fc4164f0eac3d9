"""Commands in this process, and what the jobs of ``support.cli_app`` leave in the database."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue
from sqlalchemy_bgjob.cli import cli
from support import cli_app as app


def add(engine: Engine, handler: Any, arg: Any = None, **options: Any) -> None:
    with Session(engine) as session, session.begin():
        enqueue(session, handler, arg, **options)


def notes(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(app.Note.words).order_by(app.Note.words)))


def rows(engine: Engine) -> list[Any]:
    """(attempt, claimed_by, last_error) of each job."""
    job = app.functions.models.job
    with engine.connect() as connection:
        query = select(job.c.attempt, job.c.claimed_by, job.c.last_error)
        return list(connection.execute(query).all())


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command in this process: its exit code, stdout and stderr."""
    result = CliRunner().invoke(
        cli, arguments, env=environment, standalone_mode=False, catch_exceptions=False
    )
    return result.return_value or 0, result.stdout, result.stderr
