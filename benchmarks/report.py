"""How a comparison is told: a section for each workload, then the targets. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.targets import Key, Medians, Verdict, medians
from sqlalchemy_bgjob._bench.arena import OURS, Measurement
from sqlalchemy_bgjob._bench.command import FIGURES as OF_BENCH
from sqlalchemy_bgjob._bench.command import columns
from sqlalchemy_bgjob._bench.workloads import Workload

MAIN_VARIANT: Mapping[str, str] = {
    "W1": "Connection",
    "W3": "AsyncWorker",
    "W4": "AsyncWorker",
    "W5": "AsyncWorker",
    "W7": "AsyncWorker",
    "W12": "AsyncWorker",
}
"""What of ours is compared with the others, where it is not the only one."""
TABLE = (
    ("enqueue, one job a commit (jobs/s)", "W1", "jobs_per_second", "{:,.0f}"),
    ("enqueue, 100,000 in one transaction (jobs/s)", "W2", "jobs_per_second", "{:,.0f}"),
    ("drain by one process (jobs/s)", "W3", "jobs_per_second", "{:,.0f}"),
    ("drain by two processes (jobs/s)", "W4", "jobs_per_second", "{:,.0f}"),
    ("pick-up by an idle worker, p50 (ms)", "W5", "p50_ms", "{:.2f}"),
    ("the same, p99 (ms)", "W5", "p99_ms", "{:.2f}"),
    ("drain beside an open transaction, last tenth (jobs/s)", "W7", "last_per_second", "{:,.0f}"),
)
"""The rows of the README's table: what, workload, figure, and how it is written."""
FIGURES: Mapping[str, str] = {
    **OF_BENCH,
    "first_p99_ms": "p99 at first {:.2f} ms",
    "last_p99_ms": "p99 at last {:.2f} ms",
    "buffers": "{:,.0f} buffers",
    "share_of_ideal": "{:.0%} of the ideal",
    "wal_bytes": "{:,.0f} bytes of WAL a job",
    "dead_tuples": "{:,.0f} dead tuples at the end",
    "worker_us": "worker {:,.0f} us a job",
    "producer_us": "producer {:,.0f} us a job",
    "server_us": "server {:,.0f} us a job",
    "rss_mib": "RSS {:,.0f} MiB",
    "rss_growth": "{:.2f} times that at a quarter",
    "longest_wait_s": "longest wait {:.2f} s",
    "idle_per_second": "idle {:,.1f} transactions/s",
    "idle_worker": "idle worker {:.1%} of a core",
    "idle_server": "idle server {:.1%} of a core",
    "sessions": "{:.0f} sessions",
    "start_s": "{:.2f} s",
    "back_s": "{:.2f} s",
    "transactions": "{:.1f} transactions a job",
    "drain_share": "drain {:.2f} of that before",
}
"""How each figure is written."""
COMPARED = ("jobs_per_second", "first_per_second", "last_per_second", "p50_ms", "p99_ms")


def workload_lines(workload: Workload, measurements: Sequence[Measurement]) -> Iterator[str]:
    """A workload's medians, their ranges over the rounds, and the ratios of ours to the others."""
    mine = [m for m in measurements if m.workload == workload.name]
    if not mine:
        return
    figures = medians(mine)
    yield ""
    yield f"{workload.name}  {workload.title}"
    rows = []
    for contestant, variant in dict.fromkeys((m.contestant, m.variant) for m in mine):
        runs = [m for m in mine if (m.contestant, m.variant) == (contestant, variant)]
        told = [
            _figure(
                name,
                [run.figures[name] for run in runs if name in run.figures],
                figures[Key(workload.name, contestant, variant, name)],
            )
            for name in runs[0].figures
        ]
        ratios = _ratios(workload.name, contestant, variant, figures)
        rows.append((contestant, variant, _sizes(runs), ratios, ", ".join(told)))
    yield from columns(rows, indent="  ")


def _sizes(runs: Sequence[Measurement]) -> str:
    """How many jobs it were; the later rounds of a slow queue have fewer."""
    sizes = dict.fromkeys(f"{run.jobs:,}" for run in runs)
    return f"{', then '.join(sizes)} jobs"


def _figure(name: str, values: Sequence[float], middle: float) -> str:
    text = FIGURES[name].format(middle)
    if len(values) < 2:
        return text
    number = FIGURES[name][FIGURES[name].index("{") : FIGURES[name].index("}") + 1]
    return f"{text} [{number.format(min(values))} .. {number.format(max(values))}]"


def _ratios(workload: str, contestant: str, variant: str, figures: Medians) -> str:
    """What ours is of this one, figure by figure."""
    mine = MAIN_VARIANT.get(workload, "")
    if (contestant, variant) == (OURS, mine):
        return ""
    found = []
    for figure in COMPARED:
        our = figures.get(Key(workload, OURS, mine, figure))
        other = figures.get(Key(workload, contestant, variant, figure))
        if our is not None and other:
            found.append(f"{our / other:.2f}")
    return f"ours is {', '.join(found)} of it" if found else ""


def target_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """A line for each target: yes, NO, or a dash where it was not measured."""
    yield ""
    yield "targets, by ratios of medians"
    rows = [
        (
            verdict.workload,
            verdict.promise,
            "" if verdict.value is None else f"{verdict.value:.2f}",
            {True: "yes", False: "NO", None: "-"}[verdict.met],
        )
        for verdict in verdicts
    ]
    yield from columns(rows, indent="  ")


def table_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The medians of all contestants, as Markdown; *found* is what the JSON file holds."""
    figures = medians(Measurement(**m) for m in found["measurements"])
    names = list(found["contestants"])
    yield f"| | {' | '.join(names)} |"
    yield "|---" + "|---:" * len(names) + "|"
    for what, workload, figure, form in TABLE:
        variants = [MAIN_VARIANT.get(workload, "") if name == OURS else "" for name in names]
        keys = [Key(workload, *who, figure) for who in zip(names, variants, strict=True)]
        cells = [form.format(figures[key]) if key in figures else "-" for key in keys]
        yield f"| {what} | {' | '.join(cells)} |"


def exit_code(verdicts: Iterable[Verdict], failures: Iterable["tuple[str, str]"]) -> int:
    """1 if a target is missed or ours has failed; *failures* are (contestant, what it said)."""
    missed = any(verdict.met is False for verdict in verdicts)
    return int(missed or any(contestant == OURS for contestant, _ in failures))


def origin_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Versions, machine, server."""
    for title in ("versions", "machine", "server"):
        yield f"{title}: " + ", ".join(f"{name} {value}" for name, value in found[title].items())


def head_lines(
    found: Mapping[str, Any],
    peers: Mapping[str, Mapping[str, str]],
    failures: Sequence[tuple[str, str]],
) -> Iterator[str]:
    """Versions, machine, server, each contestant's settings, and what has failed."""
    yield from origin_lines(found)
    yield f"sizes: {found['scale']:g} of the full ones; rounds: {found['rounds']}"
    if found["scale"] < 1:
        # A rate begins with the first handler, so one fetch of the whole backlog takes no time.
        yield "small sizes flatter those that fetch in large batches, and mean nothing for them"
    yield ""
    for name, peer in peers.items():
        yield f"{name} {peer['version']}: {peer['settings']}"
    for contestant, problem in failures:
        yield ""
        yield f"{contestant} FAILED: {problem}"
