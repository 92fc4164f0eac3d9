"""What a search finds, page by page, and that it looks at few rows however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, text

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._inspect import jobs as reads
from sqlalchemy_bgjob._inspect.reading import begin_reading
from sqlalchemy_bgjob._sql.search import FEW
from sqlalchemy_bgjob._sql.search_condition import condition
from sqlalchemy_bgjob._sql.search_terms import parse
from support.plans import recorded_plans
from support.rows import add, fill

if TYPE_CHECKING:
    from support.queue import Queue

pytestmark = pytest.mark.core


def live(queue: Queue, search: str, **options: Any) -> list[str]:
    with queue.engine.begin() as connection:
        begin_reading(connection)
        page = reads.live_page(
            connection, queue.statements, parse(search), **{"size": 50, **options}
        )
    return [job.id for job in page.rows]


def dead(queue: Queue, search: str) -> list[str]:
    with queue.engine.begin() as connection:
        page = reads.dead_page(connection, queue.statements, parse(search), size=50)
    return [job.id for job in page.rows]


@pytest.fixture
def some(queue: Queue) -> Queue:
    with queue.engine.begin() as connection:
        add(connection, "due", due_in=-60.0, arg=b'{"user": {"id": 42}, "to": "a b"}', attempt=3)
        add(connection, "running", due_in=-90.0, claimed_by=7, group_key="g", batch_id="b")
        add(connection, "later", due_in=900.0, queue="mail", priority=9, unique_key="q:sync:7")
        add(connection, "retrying", due_in=60.0, last_error="OSError: 100% of disk_1 used")
        add(connection, "bytes", due_in=-5.0, queue="mail", arg=b"\xff", headers=BYTES)
        connection.execute(text("UPDATE bgjob_job SET type = 'report.daily' WHERE id = 'later'"))
        connection.execute(
            text("UPDATE bgjob_job SET created_at = now() - interval '2 h' WHERE id = 'due'")
        )
        connection.execute(text(DEAD))
    return queue


BYTES = '{"content-type": "application/octet-stream"}'
DEAD = """
    INSERT INTO bgjob_dead_job (id, job_id, queue, type, lease, next_run_at, job_created_at,
                                job_updated_at, moved_at, last_error)
    SELECT 'row-' || n, 'dead-' || n, 'q', 't', 1, now(), now(), now(),
           now() - n * interval '1 h', CASE WHEN n = 2 THEN 'KeyError: x' ELSE 'OSError: y' END
    FROM generate_series(1, 3) AS n
"""


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["running", "due", "bytes", "retrying", "later"]),
        ("state:due", ["due", "bytes"]),
        ("state:running", ["running"]),
        ("state:scheduled", ["retrying", "later"]),
        ("state:retrying", ["retrying"]),
        ("state:due,running", ["running", "due", "bytes"]),
        ("-state:due", ["running", "retrying", "later"]),
        ("state:waiting", []),
        ("state:dead", []),
        ("queue:mail", ["bytes", "later"]),
        ("queue:m*", ["bytes", "later"]),
        ("queue:%", []),
        ("-queue:mail", ["running", "due", "retrying"]),
        ("type:report*", ["later"]),
        ("report.daily", ["later"]),
        ("id:due,later", ["due", "later"]),
        ("id:due queue:mail", []),
        ("key:sync:7", ["later"]),
        ("-key:sync:7", ["running", "due", "bytes", "retrying"]),
        ("group:g batch:b", ["running"]),
        ("priority:>5", ["later"]),
        ("priority:<=0 attempt:3", ["due"]),
        ("worker:7", ["running"]),
        ("error:oserror", ["retrying"]),
        ("error:100%", ["retrying"]),
        ("error:diskx1", []),
        ("since:1h", ["running", "bytes", "retrying", "later"]),
        ("arg.user.id:42", ["due"]),
        ("arg.user.id:41,42", ["due"]),
        ('arg.to:"a b"', ["due"]),
        ("arg.user.name:42", []),
        ("-arg.user.id:42", ["running", "bytes", "retrying", "later"]),
    ],
)
def test_live_jobs_are_found_in_the_order_of_their_time(
    some: Queue, search: str, found: list[str]
) -> None:
    search = search.replace("key:sync:7", 'key:"sync:7"')
    assert live(some, search) == found


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["dead-1", "dead-2", "dead-3"]),
        ("state:dead error:KeyError", ["dead-2"]),
        ("id:dead-3", ["dead-3"]),
        ("id:row-3", ["dead-3"]),
        ("since:90m", ["dead-1"]),
        ("state:running", []),
        ("worker:7", []),
    ],
)
def test_dead_jobs_are_found_the_last_first(some: Queue, search: str, found: list[str]) -> None:
    assert dead(some, search) == found


@pytest.mark.parametrize("search", ["", "type:t", "type:odd", "state:due", "-queue:q3"])
@pytest.mark.parametrize("scan", [7, 1_000])
def test_pages_together_have_each_job_once(queue: Queue, search: str, scan: int) -> None:
    """However little each of them looks at, and wherever the lanes stop."""
    with queue.engine.begin() as connection:
        for n in range(4):
            for priority in (-1, 0):
                fill(connection, 23, queue=f"q{n}", priority=priority, prefix=f"{n}.{priority}-")
        connection.execute(text("UPDATE bgjob_job SET type = 'odd' WHERE id LIKE '%7'"))
        order = text("SELECT id FROM bgjob_job ORDER BY next_run_at, id")
        everything = list(connection.execute(order).scalars())
        odd = set(connection.execute(text("SELECT id FROM bgjob_job WHERE type = 'odd'")).scalars())
    expected = {
        "": everything,
        "state:due": everything,
        "type:t": [id for id in everything if id not in odd],
        "type:odd": [id for id in everything if id in odd],
        "-queue:q3": [id for id in everything if not id.startswith("3.")],
    }[search]

    found: list[str] = []
    after = None
    with queue.engine.begin() as connection:
        for _ in range(200):
            page = reads.live_page(
                connection, queue.statements, parse(search), size=5, after=after, scan=scan
            )
            found += [job.id for job in page.rows]
            after = page.following
            if after is None:
                break

    assert found == expected


def test_a_page_of_many_jobs_looks_at_few(queue: Queue) -> None:
    """Not a row beyond what it may look at, and by the claim's index."""
    with queue.engine.begin() as connection:
        for priority in (0, 5):
            fill(connection, 20_000, priority=priority, prefix=f"due{priority}-")
            fill(connection, 20_000, priority=priority, due_in=900.0, prefix=f"later{priority}-")
        connection.execute(text("ANALYZE bgjob_job"))
    searches = ("", "state:scheduled", "type:nothing", "error:x priority:5")
    with queue.engine.connect() as connection, recorded_plans(connection) as plans:
        for search in searches:
            with connection.begin():
                reads.live_page(connection, queue.statements, parse(search), size=50, scan=1_000)

    for plan in plans:
        rows = sum(
            node["Actual Rows"] * node["Actual Loops"]
            for node in plan.nodes()
            if node.get("Relation Name") == "bgjob_job"
        )
        assert rows <= 1_200, plan.query
        assert "Seq Scan" not in plan.scans(), plan.query


@pytest.mark.parametrize("search", ["", "type:t", "type:nothing", "state:scheduled"])
def test_a_page_of_many_lanes_looks_at_few_of_each(queue: Queue, search: str) -> None:
    """The price does not grow by a page for each queue."""
    lanes, each, page, scan = 150, 40, 30, 400
    with queue.engine.begin() as connection:
        for n in range(lanes):
            fill(connection, each, queue=f"q{n}", due_in=900.0 + n, prefix=f"{n:03}-")
        connection.execute(text("ANALYZE bgjob_job"))
    with queue.engine.connect() as connection, recorded_plans(connection) as plans:
        found = reads.live_page(connection, queue.statements, parse(search), size=page, scan=scan)

    found_lanes = 2 * lanes
    rows = [
        sum(
            node["Actual Rows"] * node["Actual Loops"]
            for node in plan.nodes()
            if node.get("Relation Name") == "bgjob_job"
        )
        for plan in plans
    ]
    looked_at = scan + FEW * lanes if search else each * (page + 1)
    rounded = lanes / 2  # before PostgreSQL 18 the rows of each lane are told as a whole number
    assert max(rows) <= found_lanes + looked_at + page + rounded
    assert [job.id for job in found.rows] == (
        [] if search == "type:nothing" else [f"000-{n:09}" for n in range(1, page + 1)]
    )


def test_an_id_is_found_behind_any_number_of_jobs(queue: Queue) -> None:
    with queue.engine.begin() as connection:
        fill(connection, 3_000)
        add(connection, "mine", due_in=5_000.0, unique_key="l:k")

    assert live(queue, "id:mine", scan=10) == ["mine"]
    assert live(queue, "key:k", scan=10) == ["mine"]
    assert live(queue, "type:t id:mine", scan=10) == ["mine"]


def test_a_batch_is_found_behind_any_number_of_jobs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its index. One of very many jobs is looked for as others are, as far as a page looks."""
    with queue.engine.begin() as connection:
        fill(connection, 3_000)
        for place in (2, 1, 3):
            add(connection, f"mine-{place}", due_in=5_000.0 + place, batch_id="b")
        connection.execute(text(DEAD))
        connection.execute(text("UPDATE bgjob_dead_job SET batch_id = 'b' WHERE id <> 'row-2'"))
        connection.execute(text("ANALYZE bgjob_job"))
    with queue.engine.connect() as connection, recorded_plans(connection) as plans:
        found = reads.live_page(connection, queue.statements, parse("batch:b"), size=2, scan=10)
        rest = reads.live_page(
            connection, queue.statements, parse("batch:b"), size=2, after=found.following
        )

    assert [job.id for job in found.rows + rest.rows] == ["mine-1", "mine-2", "mine-3"]
    assert "Seq Scan" not in {scan for plan in plans for scan in plan.scans()}
    assert live(queue, "-batch:b", scan=10, size=3) == [f"job-{n:09}" for n in (1, 2, 3)]
    assert dead(queue, "batch:b") == ["dead-1", "dead-3"]

    monkeypatch.setattr(reads, "MOST_OF_BATCHES", 2)
    assert live(queue, "batch:b", scan=10) == []
    assert live(queue, "batch:b", scan=5_000) == ["mine-1", "mine-2", "mine-3"]


@pytest.mark.parametrize("is_live", [False, True])
def test_the_arg_of_the_first_is_read_alone(queue: Queue, is_live: bool) -> None:
    """Each may be a mebibyte, and one is shown."""
    with queue.engine.begin() as connection:
        if is_live:
            add(connection, "mine", arg=b"0")
        connection.execute(text(DEAD))
        connection.execute(
            text("UPDATE bgjob_dead_job SET job_id = 'mine', arg = convert_to(id, 'UTF8')")
        )
        found = {
            args: [one.arg for one in reads.all_of(connection, queue.statements, "mine", args=args)]
            for args in (False, "first", True)
        }

    every = [b"0"] * is_live + [b"row-1", b"row-2", b"row-3"]
    assert found == {
        False: [None] * len(every),
        "first": [every[0]] + [None] * (len(every) - 1),
        True: every,
    }


def test_groups_and_deaths_are_counted(some: Queue) -> None:
    with some.engine.begin() as connection:
        groups = reads.dead_groups(connection, some.statements, parse(""), size=10)
        hours = reads.deaths(connection, some.statements, seconds=3_600.0, periods=4, scan=100)
        count = reads.count_dead(connection, some.statements, parse("error:OSError"))
        most = reads.count_live(connection, some.statements, parse(""), most=3)

    assert [(group.type, group.error_type, group.count) for group in groups] == [
        ("t", "OSError", 2),
        ("t", "KeyError", 1),
    ]
    assert hours == [1, 1, 1, 0]
    assert (count, most) == (2, 4)


def test_an_arg_is_parsed_once_for_all_values() -> None:
    job = BGJob(MetaData()).models.job
    one_of_three = condition(job, parse("arg.user.id:41,42,43"))
    assert str(one_of_three.compile()).count("convert_from") == 1


def test_reading_can_change_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        begin_reading(connection)
        with pytest.raises(Exception, match="read-only"):
            connection.execute(text("CREATE TABLE x ()"))
