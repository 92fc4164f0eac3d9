"""The benchmark: it runs, counts, tells the truth about targets, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pytest
from sqlalchemy import Engine, make_url, text

from sqlalchemy_bgjob._bench import command as bench
from sqlalchemy_bgjob._bench import workloads
from sqlalchemy_bgjob._bench.arena import OURS, Arena, BenchError, Contestant, Measurement
from sqlalchemy_bgjob._bench.command import (
    columns,
    harness_engine,
    in_words,
    our_contestant,
    run_bench,
    section,
)
from sqlalchemy_bgjob._bench.machine import server_cpu
from sqlalchemy_bgjob._bench.times import (
    cpu_share,
    ended,
    handled,
    memory,
    percentile,
    rate,
    reached,
    waits,
)
from sqlalchemy_bgjob._bench.workloads import WORKLOADS, chosen
from sqlalchemy_bgjob._process.exits import CommandError
from support.commands import Command
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parent.parent
NONE = "SELECT false"
"""No job is left."""
VARIANTS = {
    "W1": ["Session", "Session by hand", "Connection", "Connection by hand"],
    "W1b": ["wake-up", "no wake-up"],
    "W2": [""],
    "W3": [
        "AsyncWorker",
        "Worker",
        "AsyncWorker, 1 KiB arg",
        "Worker, 1 KiB arg",
        "AsyncWorker, concurrency 10",
        "Worker, concurrency 10",
        "statements alone",
    ],
    "W5": ["AsyncWorker", "Worker"],
    "W6": ["small backlog", "big backlog", "idle poll"],
    "W7b": ["AsyncWorker"],
    "W8": ["Worker", "by hand"],
    "W10": ["AsyncWorker"],
    "W11": ["AsyncWorker"],
}


def variants(*names: str) -> list[tuple[str, str]]:
    return [(name, variant) for name in names for variant in VARIANTS[name]]


def schemas(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        query = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' ORDER BY 1"
        return list(connection.execute(text(query)).scalars())


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


class InThread:
    """A command that goes on in a thread of this process: no time is lost to its start."""

    def __init__(self, contestant: Contestant, command: str, options: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._ready, self._stop = (Path(self._folder.name, name) for name in ("ready", "stop"))
        files = {"ready_file": str(self._ready), "stop_file": str(self._stop)}
        given = {**contestant.options, **files, **options}
        self._threads = ThreadPoolExecutor(1)
        self._answer = self._threads.submit(contestant.here, command, given)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self._ready.exists() or self._answer.done(), what="the ready file")

    def check(self) -> None:
        if self._answer.done():
            self._answer.result()

    def stop(self) -> Any:
        self._stop.touch()
        return self.answer(30)

    def answer(self, timeout: float) -> Any:
        return self._answer.result(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.touch()
        self._threads.shutdown()
        self._folder.cleanup()


class Threaded(Contestant):
    def start(self, command: str, **options: Any) -> Any:
        return InThread(self, command, options)


def ours_in_threads(url: str, schema: str) -> Arena:
    """Ours, without a process for each command."""
    parsed = make_url(url)
    ours = our_contestant(parsed, schema)
    contestant = Threaded(ours.name, ours.argv, ours.dsn, ours.options, here=ours.here)
    return Arena.prepare(contestant, harness_engine(parsed), scale=0.001)


@pytest.fixture(scope="module")
def arena(bench_url: str) -> Arena:
    return ours_in_threads(bench_url, "own")


@pytest.fixture(scope="module")
def measured(bench_url: str) -> dict[str, list[Measurement]]:
    """Workloads by name; those of a lane in turn, the lanes at once, since all mostly wait."""
    lanes = (["W3"], ["W1b", "W6", "W8"], ["W7b", "W10", "W11"])

    def run(number: int, names: list[str]) -> dict[str, list[Measurement]]:
        arena = ours_in_threads(bench_url, f"lane_{number}")
        found = {name: list(WORKLOADS[name].run(arena)) for name in names}
        assert arena.contestant.call("remaining") == {"remaining": 0}
        return found

    with ThreadPoolExecutor(len(lanes)) as threads:
        found = threads.map(run, range(len(lanes)), lanes)
        return {name: some for lane in found for name, some in lane.items()}


def test_a_drain_has_its_variants_and_its_yardstick(
    measured: dict[str, list[Measurement]],
) -> None:
    found = measured["W3"]
    assert [(m.workload, m.variant) for m in found] == variants("W3")
    assert all(value > 0 for m in found for value in m.figures.values())
    printed = "\n".join(section(WORKLOADS["W3"], found))
    assert f"W3  {WORKLOADS['W3'].title}" in printed
    assert all(variant in printed for variant in VARIANTS["W3"])


def test_workloads_that_are_more_than_a_drain_run(
    measured: dict[str, list[Measurement]],
) -> None:
    """What they count is checked in them."""
    names = ("W1b", "W6", "W7b", "W8", "W10", "W11")
    found = [m for name in names for m in measured[name]]
    assert list(dict.fromkeys((m.workload, m.variant) for m in found)) == variants(*names)
    assert all("nan" not in in_words(m.figures) for m in found)


def test_a_queue_that_cannot_be_emptied_is_drained(arena: Arena) -> None:
    arena.contestant.call("bulk", jobs=10)

    replace(arena, clean_sql=(), can_empty=False).clean()

    assert arena.contestant.call("remaining") == {"remaining": 0}


def test_the_drains_of_a_slow_queue_are_smaller(arena: Arena) -> None:
    assert arena.drained(50_000) == 50
    assert replace(arena, scale=1.0, is_slow=False).drained(50_000) == 50_000
    assert replace(arena, scale=1.0, is_slow=True).drained(50_000) == 5_000


@pytest.mark.core
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
    assert all(value > 0 for m in found["measurements"] for value in m["figures"].values())
    for name in ("W1", "W2", "W5"):
        assert f"{name}  {WORKLOADS[name].title}" in command.stdout
        assert all(variant in command.stdout for variant in VARIANTS[name])


# ---- what it says when it can't -----------------------------------------------------------------


def test_a_workload_that_does_not_exist_is_named() -> None:
    with pytest.raises(CommandError, match="there is no workload 'w99'; choose from W1, W1b, W2"):
        chosen("W1,W99")
    assert [workload.name for workload in chosen("w3, W1")] == ["W1", "W3"]
    assert len(chosen(None)) == 13


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


def contestant(code: str) -> Contestant:
    return Contestant("other", (sys.executable, "-c", f"import sys\n{code}"), "dsn")


def test_a_command_that_fails_is_told_with_the_end_of_what_it_said() -> None:
    with pytest.raises(BenchError, match=r"(?s)other: bulk ended with exit code 3.*no luck"):
        contestant("print('no luck', file=sys.stderr); sys.exit(3)").call("bulk")
    with pytest.raises(BenchError, match="printed no JSON"):
        contestant("print('hello')").call("bulk")
    with pytest.raises(BenchError, match=r"took more than 0\.1 s"):
        contestant("import time; time.sleep(60)").call("bulk", timeout=0.1)


def test_a_worker_that_ends_before_it_is_ready_is_not_waited_for() -> None:
    with (
        contestant("sys.exit(1)").start("work") as running,
        pytest.raises(BenchError, match="exit code 1"),
    ):
        running.wait_until_ready()


def test_a_lost_or_doubled_job_fails_the_run(module_engine: Engine) -> None:
    arena = Arena(contestant(""), module_engine, "1", "", NONE)
    with pytest.raises(BenchError, match="other has run 9 of 10 jobs"):
        workloads._check_count(arena, 10, [{"count": 4}, {"count": 5}])
    with pytest.raises(BenchError, match="2 jobs were enqueued and 1 were run"):
        waits([(0, 1.0), (1, 1.0)], [{"picked": [(0, 1.5)]}])
    with pytest.raises(BenchError, match="job 0 was run twice"):
        waits([(0, 1.0)], [{"picked": [(0, 1.5)]}, {"picked": [(0, 1.6)]}])


def test_a_drain_in_batches_ends_when_no_job_is_left(module_engine: Engine) -> None:
    """When the last handler was called tells nothing about the end of its batch."""
    noted = {"count": 10, "first": 1.0, "last": 1.0, "marks": [[0, 1.0]]}
    one_by_one = Arena(
        contestant(f"print({json.dumps(json.dumps(noted))})"), module_engine, "", "", NONE
    )
    began = time.monotonic()

    (plain,) = workloads.drain(one_by_one, 10)
    (batched,) = workloads.drain(replace(one_by_one, batched=True), 10)

    assert plain == noted
    assert began < batched["last"] < time.monotonic()
    assert batched == {**noted, "last": batched["last"]}


def test_the_cpu_of_a_local_server_is_seen(module_engine: Engine) -> None:
    seconds = server_cpu(module_engine)
    assert seconds is None or seconds > 0


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


def test_batches_are_timed_from_their_starts_to_the_end_of_the_drain() -> None:
    """Marks are the jobs that were done before a batch: two at once, then one after the other."""
    starts = [(0, 10.0), (0, 10.5), (5_000, 11.0), (10_000, 12.0)]
    seen = ended(answer(20_000, 10.0, 12.0, *starts), 14.0)

    assert rate([seen]) == 5_000
    assert reached(seen, 10_000) == 12.0
    assert handled(seen, 13.0) == 15_000
    assert ended({"count": 0, "last": None}, 14.0) == {"count": 0, "last": None}


def test_waits_are_from_the_return_of_enqueue() -> None:
    sent = [(0, 0.9, 1.0), (1, 1.9, 2.0)]
    assert waits(sent, [{"picked": [(1, 2.25), (0, 1.5)]}]) == [(1.0, 0.5), (2.0, 0.25)]


def test_cpu_and_memory_are_those_between_the_first_and_the_last_job() -> None:
    samples = [(0.0, 0.0, 9), (1.0, 0.5, 1), (2.0, 1.0, 2), (3.0, 1.5, 3), (4.0, 2.0, 4)]
    seen = answer(10, 1.0, 4.0) | {"samples": [*samples, (9.0, 9.0, 9)]}
    assert cpu_share(seen) == pytest.approx(0.5)
    assert memory(seen) == (2, 3, 4)


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


# ---- the comparison -----------------------------------------------------------------------------


class Modules:
    """``benchmarks`` is beside the tests, and not installed."""

    compare: ModuleType
    designs: ModuleType
    report: ModuleType
    targets: ModuleType


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Modules:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import compare, designs, report, targets

    modules = Modules()
    modules.compare, modules.designs = compare, designs
    modules.report, modules.targets = report, targets
    return modules


def rates(contestant: str, variant: str, *values: float) -> list[Measurement]:
    return [
        Measurement("W3", contestant, variant, 50_000, {"jobs_per_second": value}, number)
        for number, value in enumerate(values, 1)
    ]


def drains(ours: float) -> list[Measurement]:
    """W3, in which the others do 40,000 and 20,000 jobs a second, and 60,000 are possible."""
    return [
        *rates(OURS, "AsyncWorker", ours, ours + 5_000, 1.0),
        *rates(OURS, "Worker", 40_000),
        *rates(OURS, "statements alone", 60_000),
        *rates("graphile", "", 40_000),
        *rates("pgqueuer", "", 20_000),
    ]


def told(
    benchmarks: Modules,
    measurements: list[Measurement],
    path: Path,
    scale: float = 1.0,
    **more: Any,
) -> int:
    comparison = benchmarks.compare.Comparison(measurements, **more)
    found = bench.document(measurements, scale=scale, server={"fsync": "on"}, rounds=3)
    verdicts = benchmarks.compare.write(comparison, found, path / "out.json")
    code = benchmarks.compare.tell(comparison, [WORKLOADS["W3"]], found, verdicts)
    assert isinstance(code, int)
    return code


def test_met_targets_are_told_and_the_exit_code_is_0(
    benchmarks: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = {"graphile": {"version": "0.17", "settings": "concurrency 100"}}
    assert told(benchmarks, drains(46_000), tmp_path, settings=peer) == 0

    printed = capsys.readouterr().out
    assert "fsync on" in printed
    assert "graphile 0.17: concurrency 100" in printed
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    # The median of three; "ours is" what AsyncWorker does over what this one does.
    assert any("46,000 jobs/s [1 .. 51,000]" in line for line in lines)
    assert "graphile 50,000 jobs ours is 1.15 of it 40,000 jobs/s" in lines
    assert "W3 AsyncWorker / graphile >= 1.1 1.15 yes" in lines
    assert "W3 AsyncWorker / pgqueuer >= 2 2.30 yes" in lines
    assert "W11 longest wait in s <= 2 -" in lines
    assert " NO" not in printed


def test_a_missed_target_is_told_and_the_exit_code_is_1(
    benchmarks: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(benchmarks, drains(43_000), tmp_path) == 1

    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "W3 AsyncWorker / graphile >= 1.1 1.07 NO" in lines
    assert "W3 AsyncWorker / pgqueuer >= 2 2.15 yes" in lines
    found = json.loads((tmp_path / "out.json").read_text())
    missed = [target["promise"] for target in found["targets"] if target["met"] is False]
    assert missed == ["AsyncWorker / graphile >= 1.1", "AsyncWorker / statements alone >= 0.75"]
    assert len(found["measurements"]) == 7


def test_a_failed_peer_is_told_and_ours_decides(
    benchmarks: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measurements = drains(46_000)
    assert told(benchmarks, measurements, tmp_path, failures=[("awa", "no such table")]) == 0
    printed = capsys.readouterr().out
    assert "awa FAILED: no such table" in printed
    assert "mean nothing" not in printed
    assert told(benchmarks, measurements, tmp_path, failures=[(OURS, "W3: lost a job")]) == 1


def test_every_workload_has_a_target(benchmarks: Modules) -> None:
    """Of one and the same figure for everything, each says at least something."""
    targets = benchmarks.targets
    for target in targets.TARGETS:
        assert target.judge({}).met is None
    assert {target.workload for target in targets.TARGETS} == set(WORKLOADS)

    w9 = {
        targets.Key("W9", OURS, "AsyncWorker", "share_of_ideal"): 0.1,
        targets.Key("W9", OURS, "AsyncWorker", "worker_cpu"): 0.95,
    }
    assert targets.share_or_cpu_bound(w9) > 1
    w9[targets.Key("W9", OURS, "AsyncWorker", "worker_cpu")] = 0.5
    assert targets.share_or_cpu_bound(w9) < 1


def test_a_limit_may_be_the_most(benchmarks: Modules) -> None:
    targets = benchmarks.targets
    key = targets.Key("W11", OURS, "AsyncWorker", "longest_wait_s")
    target = targets.Target(
        "W11", "longest wait", targets.ours("W11", "AsyncWorker", key.figure), 2.0, most=True
    )
    assert target.promise == "longest wait <= 2"
    assert target.judge({key: 1.9}).met is True
    assert target.judge({key: 2.1}).met is False


def test_small_sizes_are_warned_of(
    benchmarks: Modules, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(benchmarks, drains(46_000), tmp_path, scale=0.1)
    assert "mean nothing" in capsys.readouterr().out


@pytest.mark.parametrize(("rate", "slow"), [(1_999, True), (2_000, False)])
def test_the_first_drain_of_a_peer_tells_whether_it_is_slow(
    benchmarks: Modules, module_engine: Engine, rate: float, slow: bool
) -> None:
    name = "procrastinate"
    arena = Arena(Contestant(name, (), ""), module_engine, "", "", NONE)
    judge_pace = benchmarks.compare.judge_pace

    judge_pace(arena, Measurement("W2", name, "", 100_000, {"jobs_per_second": 1.0}))
    assert arena.is_slow is None
    judge_pace(arena, Measurement("W3", name, "", 50_000, {"jobs_per_second": rate}))
    assert arena.is_slow is slow
    judge_pace(arena, Measurement("W4", name, "", 50_000, {"jobs_per_second": 4_000 - rate}))
    assert arena.is_slow is slow


def test_ours_is_never_given_fewer_jobs(benchmarks: Modules, module_engine: Engine) -> None:
    arena = Arena(Contestant(OURS, (), ""), module_engine, "", "", NONE)
    benchmarks.compare.judge_pace(arena, rates(OURS, "AsyncWorker", 1.0)[0])
    assert not arena.is_slow


def test_the_table_tells_that_later_rounds_were_smaller(benchmarks: Modules) -> None:
    first, second, third = rates("procrastinate", "", 300.0, 310.0, 320.0)
    runs = [first, replace(second, jobs=5_000), replace(third, jobs=5_000)]

    lines = list(benchmarks.report.workload_lines(WORKLOADS["W3"], runs))

    assert "50,000, then 5,000 jobs" in lines[-1]


def test_a_tenth_may_be_less_than_a_batch(benchmarks: Modules) -> None:
    marks = [(0, 0.0), (1_000, 1.0), (2_000, 2.0)]
    assert benchmarks.designs._rate(marks, 0, 200) == 1_000
    assert benchmarks.designs._rate(marks, 1_800, 2_000) == 1_000
