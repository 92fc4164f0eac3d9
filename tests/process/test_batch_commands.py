"""``batches``: how far each has come, and what follows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import enqueue_many
from sqlalchemy_bgjob._inspect import batches as reads
from support import cli_app as app

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sqlalchemy_bgjob._drafts.batch import OnDead

    Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.keeps_tables


def make(engine: Engine, count: int, *, on_dead: OnDead = "continue", then: bool = True) -> str:
    """A batch of notes, and its id."""
    follower = app.note.job("all done", queue="reports") if then else None
    with (
        engine.begin() as connection,
        app.functions.batch(connection, then=follower, on_dead=on_dead) as batch,
    ):
        enqueue_many(connection, app.note, [f"note {n}" for n in range(count)], batch=batch)
    return batch.id


def bury(engine: Engine, batch: str) -> None:
    """All jobs of a batch die."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "WITH gone AS (DELETE FROM bgjob_job WHERE batch_id = %(batch)s RETURNING *)"
            " INSERT INTO bgjob_dead_job (id, job_id, queue, type, lease, next_run_at, batch_id,"
            " job_created_at, job_updated_at)"
            " SELECT id, id, queue, type, 1, now(), batch_id, now(), now() FROM gone",
            {"batch": batch},
        )


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_batches_are_a_table_the_last_one_first(bgjob: Run, tables: Engine) -> None:
    none = bgjob("batches", "list")
    first, stopped, empty = make(tables, 3), make(tables, 2, on_dead="stop"), make(tables, 0)
    bury(tables, stopped)
    with tables.begin() as connection:
        connection.exec_driver_sql(
            "DELETE FROM bgjob_job WHERE id = (SELECT min(id) FROM bgjob_job WHERE batch_id = %s)",
            (first,),
        )

    code, out, err = bgjob("batches", "list")

    assert (none[0], len(none[1].splitlines())) == (0, 1)
    assert (code, err) == (0, "")
    assert [line.split()[:-2] for line in out.splitlines()[1:]] == [
        [empty, "finished", "0", "0", "0", "0", "continue", "note", "in", "reports"],
        [stopped, "stopped", "2", "2", "0", "2", "stop", "note", "in", "reports"],
        [first, "unfinished", "1", "3", "2", "0", "continue", "note", "in", "reports"],
    ]
    unfinished = objects(bgjob("batches", "list", "--unfinished", "--json")[1])
    assert [one["id"] for one in unfinished] == [stopped, first]
    assert (unfinished[1]["ended"], unfinished[1]["then_id"]) == (1, f"{first}:then")


def test_a_list_is_cut_and_says_so(
    bgjob: Run, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pages it is read in."""
    monkeypatch.setattr("sqlalchemy_bgjob.cli.batches._PAGE", 2)
    made = [make(tables, 1, then=False) for _ in range(5)][::-1]

    _, out, err = bgjob("batches", "list", "--limit", "3", "--json")

    assert [one["id"] for one in objects(out)] == made[:3]
    assert err == "there are more; --limit 30 shows more of them\n"
    assert [one["id"] for one in objects(bgjob("batches", "list", "--json")[1])] == made


def test_a_count_of_a_batch_that_stops_says_so(
    bgjob: Run, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger ones are counted further, as far as it is not too much together."""
    monkeypatch.setattr(reads, "COUNTED", 2)
    monkeypatch.setattr(reads, "COUNTED_IN_ALL", 6)
    small, large = make(tables, 2), make(tables, 8)

    rows = {line.split()[0]: line.split()[2:6] for line in bgjob("batches", "list")[1].splitlines()}
    assert rows[small] == ["0", "2", "2", "0"]
    assert rows[large] == ["<2", "8", "6+", "0"]
    bury(tables, large)
    rows = {line.split()[0]: line.split()[2:6] for line in bgjob("batches", "list")[1].splitlines()}
    assert rows[large] == ["8", "8", "0", "6+"]
    (shown,) = objects(bgjob("batches", "show", large, "--json")[1])
    assert (shown["dead"], shown["more_dead"], shown["state"]) == (8, False, "unfinished")


def test_show_tells_all_of_a_batch(bgjob: Run, tables: Engine) -> None:
    """And its jobs tell of it."""
    batch = make(tables, 2)

    code, out, _ = bgjob("batches", "show", batch)
    facts = dict(line.split(None, 1) for line in out.splitlines())
    job = objects(bgjob("jobs", "list", f"batch:{batch}", "--json")[1])[0]["id"]

    assert code == 0
    assert facts["id:"] == batch
    assert (facts["live:"], facts["total:"], facts["ended:"]) == ("2", "2", "0")
    assert (facts["then_id:"], facts["then_queue:"]) == (f"{batch}:then", "reports")
    assert "finished_at:" not in facts
    assert f"batch_id:       {batch}\n" in bgjob("jobs", "show", job)[1]


def test_a_batch_that_is_not_there_is_told(bgjob: Run) -> None:
    assert bgjob("batches", "show", "none\x1b[2J") == (
        1,
        "",
        "there is no batch with the id 'none\\x1b[2J', or not any more\n",
    )
