"""Computes figures from the records of workers: calls over time, rates, waits. Pure.

Handlers record the time of their call. A drain is timed by these records alone, without the start
of the processes and the polls of the harness for its end.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

from .program import Answer, BenchError


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value such that at least *share* of all values are no greater."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _points(answer: Answer) -> list[tuple[float, float]]:
    """Points of (number of calls, time), ascending."""
    marks = [(float(number), float(at)) for number, at in answer["marks"]]
    points = [(1.0, answer["first"]), *marks, (float(answer["count"]), answer["last"])]
    return sorted(set(points))


def _interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """The y of an x, by linear interpolation between ascending points."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return points[-1][1]


def reached(answer: Answer, number: float) -> float:
    """When a worker called its handler for the Nth time."""
    return _interpolate(_points(answer), number)


def handled(answer: Answer, at: float) -> float:
    """How many calls a worker had begun at a given time; 0 before its first."""
    if answer["count"] == 0 or at < answer["first"]:
        return 0.0
    return _interpolate(sorted((time, number) for number, time in _points(answer)), at)


def rate(answers: Sequence[Answer]) -> float:
    """Jobs a second while all workers were busy.

    That is from the latest first call to the earliest last call. If fewer than a fifth of the jobs
    fall in between, it is from the first call of all workers to the last.
    """
    busy = [answer for answer in answers if answer["count"]]
    jobs = sum(answer["count"] for answer in busy)
    begin, end = max(a["first"] for a in busy), min(a["last"] for a in busy)
    if len(busy) == len(answers) and end > begin:
        within = sum(handled(a, end) - handled(a, begin) for a in busy)
        if within >= jobs / 5:
            return float(within / (end - begin))
    begin, end = min(a["first"] for a in busy), max(a["last"] for a in busy)
    return float((jobs - 1) / max(end - begin, 1e-9))


def tenths(answer: Answer, jobs: int, *, until: int | None = None) -> dict[str, float]:
    """Jobs a second in the first tenth of a drain and in that before *until* jobs; their ratio."""
    part, end = max(jobs // 10, 2), until or jobs
    first = (part - 1) / (reached(answer, part) - answer["first"])
    last = part / (reached(answer, end) - reached(answer, end - part))
    return {"first_per_second": first, "last_per_second": last, "ratio": last / first}


def waits(sent: Iterable[Sequence[float]], answers: Iterable[Answer]) -> list[tuple[float, float]]:
    """For each job: when its enqueue returned, and how long after that its handler was called.

    Raises:
        BenchError: A job was not run, or was run twice.
    """
    picked: dict[int, float] = {}
    for answer in answers:
        for number, at in answer["picked"]:
            if number in picked:
                raise BenchError(f"job {number} was run twice")
            picked[number] = at
    # An entry is (number, before, after) or (number, after).
    returned = {int(entry[0]): float(entry[-1]) for entry in sent}
    if picked.keys() != returned.keys():
        raise BenchError(f"{len(returned)} jobs were enqueued and {len(picked)} were run")
    return sorted((at, picked[number] - at) for number, at in returned.items())


def pick_up(sent: Iterable[Sequence[float]], answers: Iterable[Answer]) -> dict[str, float]:
    """The median of :func:`waits` in milliseconds, and the 99th percentile."""
    found = [wait * 1000 for _, wait in waits(sent, answers)]
    return {"p50_ms": percentile(found, 0.5), "p99_ms": percentile(found, 0.99)}


def cpu_share(answer: Answer) -> float:
    """How much of one processor a worker used between its first and its last job."""
    inside = [s for s in answer["samples"] if answer["first"] <= s[0] <= answer["last"]]
    if len(inside) < 2:
        inside = answer["samples"]
    seconds = inside[-1][0] - inside[0][0]
    return float((inside[-1][1] - inside[0][1]) / seconds) if seconds > 0 else 0.0
