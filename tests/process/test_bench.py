"""The benchmark: it runs, counts, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import Engine, text

from sqlalchemy_bgjob._bench import command as bench
from sqlalchemy_bgjob._bench.arena import OURS, Arena, Measurement
from sqlalchemy_bgjob._bench.command import columns, run_bench, section
from sqlalchemy_bgjob._bench.program import BenchError, Program
from sqlalchemy_bgjob._bench.times import (
    cpu_share,
    handled,
    percentile,
    rate,
    reached,
    tenths,
    waits,
)
from sqlalchemy_bgjob._bench.workloads import WORKLOADS, chosen
from sqlalchemy_bgjob._process.exits import CommandError
from support.catalog import schemas
from support.commands import Command
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NONE = "SELECT false"
"""No job is left."""
WAYS = {"W1": ["Session", "Connection"], "W2": [""], "W5": ["AsyncWorker", "Worker"]}


def variants(*names: str) -> list[tuple[str, str]]:
    return [(name, variant) for name in names for variant in WAYS[name]]


def answer(count: int, first: float, last: float, *marks: tuple[int, float]) -> dict[str, Any]:
    return {"count": count, "first": first, "last": last, "marks": marks}


# ---- whole runs ---------------------------------------------------------------------------------


class WholeRun(NamedTuple):
    """A run of the command, from its start."""

    command: Command
    engine: Engine
    before: list[str]
    json_path: Path


@pytest.fixture(scope="module")
def whole_run(
    module_engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WholeRun]:
    """Goes on while other tests run."""
    folder = tmp_path_factory.mktemp("whole")
    before = schemas(module_engine)
    url = module_engine.url.render_as_string(hide_password=False)
    options = ("--scale", "0.001", "--only", "W1,W2,W5", "--json", str(folder / "figures.json"))
    with Command(folder, "bench", "--database-url", url, *options) as command:
        yield WholeRun(command, module_engine, before, folder / "figures.json")


@pytest.mark.usefixtures("whole_run")  # which is started early, to be found at its end
def test_an_interrupted_bench_leaves_neither_schema_nor_worker(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    before = schemas(engine)
    with Command(tmp_path, "bench", "--database-url", database_url, "--only", "W5") as command:
        wait_until(lambda: workers(engine), 60, what="a worker")
        command.signal(signal.SIGINT)
        assert command.wait() == 128 + signal.SIGINT

    assert schemas(engine) == before
    wait_until(lambda: not workers(engine), what="the end of the worker")


def workers(engine: Engine) -> int:
    """Sessions of workers in this database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'bgjob/%'"
    )
    with engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def test_bench_prints_every_workload_and_leaves_no_schema(whole_run: WholeRun) -> None:
    command = whole_run.command
    assert command.wait(100) == 0, command.stderr + command.stdout

    assert schemas(whole_run.engine) == whole_run.before
    found = json.loads(whole_run.json_path.read_text())
    assert found["scale"] == 0.001
    assert found["versions"][OURS]
    assert found["server"]["server_version"]
    told = [(m["workload"], m["variant"]) for m in found["measurements"]]
    assert told == variants("W1", "W2", "W5")
    figures = [figure for m in found["measurements"] for figure in m["figures"].items()]
    # A handler may be called before its producer has read the answer to COMMIT.
    assert all(value > 0 or name.endswith("_ms") for name, value in figures)
    for name in ("W1", "W2", "W5"):
        assert f"{name}  {WORKLOADS[name].title}" in command.stdout
        assert all(variant in command.stdout for variant in WAYS[name])


# ---- what it says when it can't -----------------------------------------------------------------


def test_a_workload_that_does_not_exist_is_named() -> None:
    with pytest.raises(CommandError, match="there is no workload 'w99'; choose from W1, W2, W3"):
        chosen("W1,W99", WORKLOADS)
    assert [workload.name for workload in chosen("w3, W1", WORKLOADS)] == ["W1", "W3"]
    assert [workload.name for workload in chosen(None, WORKLOADS)] == list(WORKLOADS)


def test_jobs_and_scale_exclude_each_other() -> None:
    with pytest.raises(CommandError, match="either --jobs or --scale"):
        run_bench(database_url=None, jobs=1, scale=1.0)


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [("psycopg", "sqlalchemy-bgjob[psycopg]"), ("greenlet", "sqlalchemy-bgjob[asyncio]")],
)
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, missing: str, remedy: str
) -> None:
    monkeypatch.setattr(bench, "is_installed", lambda name: name != missing)
    with pytest.raises(CommandError) as raised:
        run_bench(database_url="postgresql+psycopg://nowhere/none")
    assert remedy in str(raised.value)


def test_an_unreachable_database_is_told_in_its_words() -> None:
    handlers = {number: signal.getsignal(number) for number in bench._SIGNALS}
    try:
        with pytest.raises(CommandError, match=r"the database refuses: .*refused"):
            run_bench(database_url="postgresql+psycopg://me@127.0.0.1:1/none")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def program(code: str) -> Program:
    return Program("other", (sys.executable, "-c", f"import sys\n{code}"), "dsn")


def test_a_failed_command_is_told_with_its_last_lines() -> None:
    with pytest.raises(BenchError, match=r"(?s)other: bulk ended with exit code 3.*no luck"):
        program("print('no luck', file=sys.stderr); sys.exit(3)").call("bulk")
    with pytest.raises(BenchError, match="printed no JSON"):
        program("print('hello')").call("bulk")
    with pytest.raises(BenchError, match=r"took more than 0\.1 s"):
        program("import time; time.sleep(60)").call("bulk", timeout=0.1)


def test_a_worker_that_ends_before_it_is_ready_is_not_waited_for() -> None:
    with (
        program("sys.exit(1)").start("work") as running,
        pytest.raises(BenchError, match="exit code 1"),
    ):
        running.wait_until_ready()


def test_a_lost_or_doubled_job_fails_the_run(module_engine: Engine) -> None:
    arena = Arena(program(""), module_engine, "1", "", NONE)
    with pytest.raises(BenchError, match="other has run 9 of 10 jobs"):
        arena.check_count(10, [{"count": 4}, {"count": 5}])
    with pytest.raises(BenchError, match="2 jobs were enqueued and 1 were run"):
        waits([(0, 1.0), (1, 1.0)], [{"picked": [(0, 1.5)]}])
    with pytest.raises(BenchError, match="job 0 was run twice"):
        waits([(0, 1.0)], [{"picked": [(0, 1.5)]}, {"picked": [(0, 1.6)]}])


# ---- arithmetic ---------------------------------------------------------------------------------


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile(range(1, 101), 0.5) == 50
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0


def test_one_worker_is_timed_from_its_first_to_its_last_job() -> None:
    assert rate([answer(1001, 10.0, 12.0, (500, 11.0))]) == 500.0


def test_two_workers_are_timed_while_both_work() -> None:
    """One begins a second late, the other ends a second early; each does 100 a second."""
    early = answer(301, 0.0, 3.0)
    late = answer(301, 1.0, 4.0)
    assert rate([early, late]) == pytest.approx(200.0)


def test_workers_that_did_not_work_together_are_timed_as_one() -> None:
    assert rate([answer(101, 0.0, 1.0), answer(100, 2.0, 4.0)]) == pytest.approx(50.0)
    assert rate([answer(101, 0.0, 2.0), {"count": 0, "first": None}]) == pytest.approx(50.0)


def test_marks_tell_when_a_number_was_reached() -> None:
    seen = answer(1000, 0.0, 10.0, (500, 1.0))
    assert reached(seen, 500) == 1.0
    assert reached(seen, 750) == pytest.approx(5.5)
    assert handled(seen, 5.5) == pytest.approx(750)
    assert handled(seen, -1.0) == 0.0
    assert reached(seen, 2000) == 10.0


def test_the_last_tenth_may_be_taken_before_the_end() -> None:
    seen = answer(100, 0.0, 40.0, (10, 1.0), (80, 10.0), (90, 20.0))
    assert tenths(seen, 100) == {"first_per_second": 9.0, "last_per_second": 0.5, "ratio": 0.5 / 9}
    assert tenths(seen, 100, until=90)["last_per_second"] == 1.0


def test_waits_are_from_the_return_of_enqueue() -> None:
    sent = [(0, 0.9, 1.0), (1, 1.9, 2.0)]
    assert waits(sent, [{"picked": [(1, 2.25), (0, 1.5)]}]) == [(1.0, 0.5), (2.0, 0.25)]


def test_the_cpu_is_that_between_the_first_and_the_last_job() -> None:
    samples = [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0), (3.0, 1.5), (4.0, 2.0), (9.0, 9.0)]
    assert cpu_share(answer(10, 1.0, 4.0) | {"samples": samples}) == pytest.approx(0.5)


def test_columns_are_aligned() -> None:
    assert list(columns([("a", "bb", "c"), ("aaa", "b", "ccc")], " ")) == [
        " a    bb  c",
        " aaa  b   ccc",
    ]


def test_a_section_has_a_line_for_each_variant() -> None:
    lines = section(
        WORKLOADS["W5"], [Measurement("W5", OURS, "Worker", 400, {"p50_ms": 1.234, "p99_ms": 5.0})]
    )
    assert list(lines)[1:] == ["  Worker  400 jobs  p50 1.23 ms, p99 5.00 ms"]
