"""The comparison: its workloads run, peers get what they need, and targets are told truly."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import Engine, make_url

from sqlalchemy_bgjob._bench import command as bench
from sqlalchemy_bgjob._bench.arena import OURS, Arena, Measurement
from sqlalchemy_bgjob._bench.command import harness_engine, section
from sqlalchemy_bgjob._bench.program import Program
from sqlalchemy_bgjob._bench.times import handled, rate, reached
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # they are beside the tests, and not installed

from benchmarks import compare, features, plot, report, targets  # noqa: E402
from benchmarks.arena import PeerArena, ended  # noqa: E402
from benchmarks.workloads import WORKLOADS, memory  # noqa: E402

NONE = "SELECT false"
"""No job is left."""
VARIANTS = {
    "W1": ["Session", "Connection", "Session by hand", "Connection by hand"],
    "W1b": ["wake-up", "no wake-up"],
    "W3": [
        "AsyncWorker",
        "Worker",
        "AsyncWorker, 1 KiB arg",
        "Worker, 1 KiB arg",
        "AsyncWorker, concurrency 10",
        "Worker, concurrency 10",
        "statements alone",
    ],
    "W6": ["small backlog", "big backlog", "idle poll"],
    "W7b": ["AsyncWorker"],
    "W8": ["Worker", "by hand"],
    "W8b": [
        f"{kind}, {calls} a call" for kind in ("AsyncWorker", "Worker") for calls in ("one", "100")
    ],
    "W10": ["AsyncWorker"],
    "W11": ["AsyncWorker"],
    **{f"W{number}": [""] for number in range(13, 19)},
    "W19": ["worker beside", "worker in the process", "worker of threads in it"],
}
FAR = ("W13", "W16")
"""Their programs are at the other end of a line, so they are processes."""


def variants(*names: str) -> list[tuple[str, str]]:
    return [(name, variant) for name in names for variant in VARIANTS[name]]


def answer(count: int, first: float, last: float, *marks: tuple[int, float]) -> dict[str, Any]:
    return {"count": count, "first": first, "last": last, "marks": marks}


# ---- our workloads ------------------------------------------------------------------------------


class InThread:
    """A command that goes on in a thread of this process: no time is lost to its start."""

    def __init__(self, program: Program, command: str, options: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._ready, self._stop = (Path(self._folder.name, name) for name in ("ready", "stop"))
        files = {"ready_file": str(self._ready), "stop_file": str(self._stop)}
        given = {**program.options, **files, **options}
        self._threads = ThreadPoolExecutor(1)
        self._answer = self._threads.submit(program.here, command, given)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self._ready.exists() or self._answer.done(), what="the ready file")

    def check(self) -> None:
        if self._answer.done():
            self._answer.result()

    def cpu(self) -> None:
        """It has none of its own."""

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


class Threaded(Program):
    def start(self, command: str, **options: Any) -> Any:
        return InThread(self, command, options)


def ours_in_threads(url: str, schema: str) -> Arena:
    """Ours, without a process for each command."""
    return arena_of(Threaded(**vars_of(ours_at(url, schema))), url)


def ours_at(url: str, schema: str) -> Program:
    return compare.ours_with_more(make_url(url), schema)


def arena_of(program: Program, url: str) -> Arena:
    return Arena.prepare(program, harness_engine(make_url(url)), scale=0.001)


def vars_of(program: Program) -> dict[str, Any]:
    return {field.name: getattr(program, field.name) for field in fields(program)}


@pytest.fixture(scope="module")
def measured(workbench_url: str) -> dict[str, list[Measurement]]:
    """Workloads by name; those of a lane in turn, the lanes at once, since all mostly wait."""
    lanes = (
        ["W3", "W18"],
        ["W1", "W1b", "W6", "W8", "W8b"],
        ["W7b", "W10", "W11"],
        ["W14", "W15", "W17", "W19"],
        [*FAR],
    )

    def run(number: int, names: list[str]) -> dict[str, list[Measurement]]:
        schema = f"lane_{number}"
        if set(names) <= set(FAR):
            arena = arena_of(ours_at(workbench_url, schema), workbench_url)
        else:
            arena = ours_in_threads(workbench_url, schema)
        found = {name: list(WORKLOADS[name].run(arena)) for name in names}
        assert arena.program.call("remaining") == {"remaining": 0}
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
    names = tuple(name for name in VARIANTS if name != "W3")
    found = [m for name in names for m in measured[name]]
    assert list(dict.fromkeys((m.workload, m.variant) for m in found)) == variants(*names)
    lines = [line for name in names for line in report.workload_lines(WORKLOADS[name], found)]
    assert "nan" not in "\n".join(lines)


def test_pictures_are_drawn_of_what_was_measured(
    measured: dict[str, list[Measurement]], tmp_path: Path
) -> None:
    """The same figures give the same bytes; what was not measured is left out."""
    found = {"measurements": [asdict(m) for m in measured["W1"] + measured["W3"]]}

    paths = list(plot.draw(found, tmp_path))

    assert [path.stem for path in paths] == ["throughput"]
    drawn = [path.read_bytes() for path in paths]
    assert b"sqlalchemy-bgjob" in drawn[0]
    assert b"by two processes" not in drawn[0], "W4 was not measured"
    assert [path.read_bytes() for path in plot.draw(found, tmp_path)] == drawn


# ---- peers --------------------------------------------------------------------------------------


def prints(found: dict[str, Any]) -> Program:
    """Whose commands all print this."""
    code = f"print({json.dumps(json.dumps(found))})"
    return Program("other", (sys.executable, "-c", code), "dsn")


def peer(engine: Engine, found: dict[str, Any], **fields: Any) -> PeerArena:
    return PeerArena(prints(found), engine, "", "", NONE, **fields)


def test_a_peer_tells_what_is_different_about_it(module_engine: Engine) -> None:
    installed = {"version": "1", "settings": "none", "remaining_sql": NONE}
    can = PeerArena.prepare(prints(installed | {"clean_sql": ["TRUNCATE t"]}), module_engine)
    can_not = PeerArena.prepare(prints(installed | {"batched": True}), module_engine)

    assert (can.clean_sql, can.can_empty, can.batched) == (
        ["TRUNCATE t", "VACUUM ANALYZE"],
        True,
        False,
    )
    assert (can_not.clean_sql, can_not.can_empty, can_not.batched) == (
        ["VACUUM ANALYZE"],
        False,
        True,
    )


def test_a_drain_in_batches_ends_when_no_job_is_left(module_engine: Engine) -> None:
    """When the last handler was called tells nothing about the end of its batch."""
    noted = {"count": 10, "first": 1.0, "last": 1.0, "marks": [[0, 1.0]]}
    began = time.monotonic()

    (plain,) = peer(module_engine, noted).drain(10)
    (batched,) = peer(module_engine, noted, batched=True).drain(10)

    assert plain == noted
    assert began < batched["last"] < time.monotonic()
    assert batched == {**noted, "last": batched["last"]}


def test_batches_are_timed_from_start_to_the_end_of_the_drain() -> None:
    """Marks are the jobs that were done before a batch: two at once, then one after the other."""
    starts = [(0, 10.0), (0, 10.5), (5_000, 11.0), (10_000, 12.0)]
    seen = ended(answer(20_000, 10.0, 12.0, *starts), 14.0)

    assert rate([seen]) == 5_000
    assert reached(seen, 10_000) == 12.0
    assert handled(seen, 13.0) == 15_000
    assert ended({"count": 0, "last": None}, 14.0) == {"count": 0, "last": None}


def test_memory_is_that_between_the_first_and_the_last_job() -> None:
    samples = [(0.0, 0.0, 9), (1.0, 0.5, 1), (2.0, 1.0, 2), (3.0, 1.5, 3), (4.0, 2.0, 4)]
    seen = answer(10, 1.0, 4.0) | {"samples": [*samples, (9.0, 9.0, 9)]}
    assert memory(seen) == (2, 3, 4)


# ---- the comparison -----------------------------------------------------------------------------


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
    measurements: list[Measurement],
    path: Path,
    scale: float = 1.0,
    **more: Any,
) -> int:
    comparison = compare.Comparison(measurements, **more)
    found = bench.document(measurements, scale=scale, server={"fsync": "on"}, rounds=3)
    verdicts = compare.write(comparison, found, path / "out.json")
    code = compare.tell(comparison, [WORKLOADS["W3"]], found, verdicts)
    assert isinstance(code, int)
    return code


def test_met_targets_are_told_and_the_exit_code_is_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = {"graphile": {"version": "0.17", "settings": "concurrency 100"}}
    assert told(drains(46_000), tmp_path, settings=peer) == 0

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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(drains(43_000), tmp_path) == 1

    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "W3 AsyncWorker / graphile >= 1.1 1.07 NO" in lines
    assert "W3 AsyncWorker / pgqueuer >= 2 2.15 yes" in lines
    found = json.loads((tmp_path / "out.json").read_text())
    missed = [target["promise"] for target in found["targets"] if target["met"] is False]
    assert missed == ["AsyncWorker / graphile >= 1.1", "AsyncWorker / statements alone >= 0.75"]
    assert len(found["measurements"]) == 7


def test_a_failed_peer_is_told_and_ours_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measurements = drains(46_000)
    assert told(measurements, tmp_path, failures=[("awa", "no such table")]) == 0
    printed = capsys.readouterr().out
    assert "awa FAILED: no such table" in printed
    assert "mean nothing" not in printed
    assert told(measurements, tmp_path, failures=[(OURS, "W3: lost a job")]) == 1


@pytest.mark.parametrize("feature", features.DRAINS, ids=lambda feature: feature.name)
def test_each_feature_that_is_measured_is_drained(
    module_engine: Engine, feature: features.Feature
) -> None:
    features.App().jobs.metadata.create_all(module_engine)

    assert features.drain(module_engine, feature, 100) > 0


def test_every_workload_has_a_target() -> None:
    """Of one and the same figure for everything, each says at least something."""
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
