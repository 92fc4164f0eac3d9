"""docs/reference/columns.md: its columns are those of the models, and its SQL does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import MetaData, Table, inspect
from sqlalchemy.dialects import postgresql

from sqlalchemy_bgjob import schema
from sqlalchemy_bgjob.models import build_models
from sqlalchemy_bgjob.schema._records_1 import RECORD_KINDS
from sqlalchemy_bgjob.schema._table_kinds import KINDS

if TYPE_CHECKING:
    from support.queue import Queue

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "columns.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
TYPES = {"timestamp with time zone": "timestamptz", "float(53)": "float8"}
RECORDS = [f"bgjob_{kind}" for kind in RECORD_KINDS]
TABLES = [*(f"bgjob_{kind}" for kind in KINDS), *RECORDS]

VERSION, *QUESTIONS, ADDED, CANCELLED, CORRECTED = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
DEAD = (
    "INSERT INTO bgjob_dead_job (id, job_id, queue, type, lease, last_error, next_run_at,"
    " job_created_at, job_updated_at) VALUES ('d', 'by-hand-2', 'mail', 't', 1,"
    " E'ValueError: no\n  tasks.py:1 in t', now(), now(), now())"
)


def table(name: str) -> Table:
    return build_models(MetaData(), records=True).metadata.tables[name]


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_columns_of_the_models(name: str) -> None:
    """In their order, with type, null and whether there is a default."""
    shown = re.findall(
        r"^\| `(\w+)` \| ([\w\[\]]+) \| (yes|no) \| (.*?) \| \S.* \|$", SECTIONS[name], re.MULTILINE
    )

    def of_postgresql(column_type: object) -> str:
        compiled = column_type.compile(dialect=postgresql.dialect()).lower()  # type: ignore[attr-defined, no-untyped-call]
        return TYPES.get(compiled, compiled)

    assert [(column, kind, null, default != "") for column, kind, null, default in shown] == [
        (c.name, of_postgresql(c.type), "yes" if c.nullable else "no", c.server_default is not None)
        for c in table(name).c
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_indexes_and_checks(name: str, queue: Queue) -> None:
    """Those that are in the database."""
    shown = re.findall(r"^\| `(\w+_(?:pkey|idx|check))` \|", SECTIONS[name], re.MULTILINE)
    if name in RECORDS:
        schema.records.upgrade(queue.connection)  # and rolled back at the end
    found = inspect(queue.connection)
    names = [
        found.get_pk_constraint(name)["name"],
        *(index["name"] for index in found.get_indexes(name)),
        *(check["name"] for check in found.get_check_constraints(name)),
    ]

    assert sorted(shown) == sorted(names)


def test_the_questions_of_the_page_are_answered(queue: Queue) -> None:
    """Each statement runs, and finds the rows that it asks for."""
    worker = (
        "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
        """ VALUES (7, 'web', 1, '0.1.0', '{"mail": 10}', 30)"""
    )
    run = queue.connection.exec_driver_sql
    run(worker)
    run(ADDED)
    run("INSERT INTO bgjob_job (id, queue, type, claimed_by) VALUES ('r', 'mail', 't', 7)")
    run(DEAD)

    answers = [run(sql).all() for sql in QUESTIONS]

    (depth,), (died,), (running,), (serving,), unserved, unknown, (arg,) = answers
    assert run(VERSION).scalar() == table("bgjob_job").comment
    assert tuple(depth[:4]) == ("mail", 1, 1, 0)
    assert tuple(died[:3]) == ("t", "ValueError: no", 1)
    assert tuple(running[:4]) == ("web", 1, "t", "r")
    assert serving[0] == "web"
    assert unserved == unknown == []
    assert tuple(arg) == ("by-hand-1", {"order_id": 7})


def test_the_page_finds_jobs_that_no_worker_serves(queue: Queue) -> None:
    """In a queue of no living worker, or of a type that workers have met without a handler."""
    run = queue.connection.exec_driver_sql
    workers = (
        "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, beat_at)"
        """ VALUES (7, 'web', 1, '0.1.0', '{"mail": 10}', 30, now()),"""
        """ (8, 'web', 2, '0.1.0', '{"mial": 10}', 30, now() - interval '31 s')"""
    )
    run(workers)
    run(
        "INSERT INTO bgjob_job (id, queue, type, unknown_since) VALUES ('s', 'mail', 't', NULL),"
        " ('misspelt', 'mial', 't', NULL), ('met', 'mail', 'u', now())"
    )

    unserved, unknown = (run(sql).one() for sql in QUESTIONS[4:6])

    assert tuple(unserved[:3]) == ("mial", "t", 1)
    assert tuple(unknown[:3]) == ("mail", "u", 1)


def test_the_statements_of_the_page_are_obeyed(queue: Queue) -> None:
    """A job by hand is claimed; a cancel spares what runs; a dead job gets its new arg."""
    run = queue.connection.exec_driver_sql
    with queue.connection.begin():
        run(ADDED)
        run(DEAD)

    [claimed] = queue.claim(queue="mail")
    with queue.connection.begin():
        spared = run(CANCELLED).rowcount
        run("UPDATE bgjob_job SET claimed_by = NULL")
        cancelled = run(CANCELLED).rowcount

    assert (claimed.id, claimed.arg, claimed.attempt) == ("by-hand-1", b'{"order_id": 7}', 1)
    assert (spared, cancelled) == (0, 1)
    assert run(CORRECTED).rowcount == 1
