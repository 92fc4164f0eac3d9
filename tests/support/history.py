"""What the journal of a test tells of each job, and whether that is allowed.

The journal is written by the processes themselves, line by line, so that it is true to the last
moment of a process that was killed. What is in the database is counted apart. A history is wrong if

* a job that was committed was never started, or is neither gone nor dead (I1), or is gone though
  nobody has completed it;
* a job that was rolled back was started (I2);
* a job was started more often than its failures and the faults that hit it explain (I3);
* two settlements of one claim were accepted (I4), a job ended twice (I8), or by a claim that was
  not its last one;
* a job was started while its last start went on, in a process that lived, had not handed it back,
  and had not been told that its lease was lost (I5);
* a job has other effects than one for its completion (I6);
* the lease of a start is not above those of all starts before it (I7);
* a job was started under a later lease than the one under which it was cancelled, or has ended as
  cancelled and nobody had cancelled it;
* a job was started by a claim that found it expired, or has ended as expired by another one;
* a job was started while its queue was paused, and all workers knew it;
* a caller has committed a change, and was told of a job that would see it, new or not: and that
  job was started before, or no run has seen it (I9);
* a schedule has fired more than once for one time, or has left out a time (I10).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ENDS = ("completed", "dead", "cancelled", "expired")
SETTLED = (*ENDS, "retried", "put off")


@dataclass(frozen=True)
class Found:
    """What the database holds at the end.

    Attributes:
        left: The ids that are still in the table of jobs.
        dead: The ids of dead jobs.
        effects: How often each job's writes were committed.
        seen: The changes that some run has seen, and committed that.
    """

    left: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()
    effects: Mapping[str, int] = field(default_factory=dict)
    seen: frozenset[int] = frozenset()


@dataclass(frozen=True)
class History:
    """A journal's lines in the order of their time, and what is to be expected of them.

    Attributes:
        lines: As :meth:`support.worker_app.Journal.read` gives them. ``killed`` names a process as
            ``killed_pid``; one that has ``left`` says so itself. ``told`` has a committed change,
            and the moment before its COMMIT.
        committed: The ids of the jobs whose enqueue was committed.
        rolled_back: Those whose enqueue was not.
        with_effects: Those whose handler writes once through its session.
        faults: How many faults may have hit each job; each may cost one more start.
        lives: How often an id was enqueued, where that was more than once.
        handed_back: The claims, as id and lease, that their holder gave back: at a shutdown that
            nobody is told of, while a function that can't be interrupted goes on.
        schedules: By a schedule's name the fire times for each of which one job must have started.
        cancelled: The jobs that were cancelled while they were queued: nobody is told of their end.
        asked: By id, under which lease a running job was first asked to end.
        late: The claims, as id and lease, that were made when the job had expired.
        pauses: From when to when nothing may start, by the clock of the lines: the queue was
            paused, and all workers had the time to see it.
    """

    lines: Iterable[Mapping[str, Any]]
    committed: frozenset[str]
    rolled_back: frozenset[str] = frozenset()
    with_effects: frozenset[str] = frozenset()
    faults: int = 0
    lives: Mapping[str, int] = field(default_factory=dict)
    handed_back: frozenset[tuple[str, int | None]] = frozenset()
    schedules: Mapping[str, Iterable[str]] = field(default_factory=dict)
    cancelled: frozenset[str] = frozenset()
    asked: Mapping[str, int | None] = field(default_factory=dict)
    late: frozenset[tuple[str, int | None]] = frozenset()
    pauses: Sequence[tuple[float, float]] = ()

    def problems(self, found: Found) -> list[str]:
        """All that is not allowed, in words; empty if there is nothing."""
        lines = sorted(self.lines, key=lambda line: float(line["at"]))
        by_job: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for line in lines:
            if "id" in line:
                by_job[line["id"]].append(line)
        killed = {line["killed_pid"]: line["at"] for line in lines if line["event"] == "killed"}
        gone = killed | {line["pid"]: line["at"] for line in lines if line["event"] == "left"}
        problems = [f"{id}: rolled back, and started" for id in self.rolled_back & by_job.keys()]
        for told in (line for line in lines if line["event"] == "told"):
            change = f"{told['key']}: change {told['change']}"
            if told["change"] not in found.seen:
                problems.append(f"{change} was committed, and no run has seen it")
            starts = [line["at"] for line in by_job[told["job"]] if line["event"] == "start"]
            if starts and min(starts) < told["committing"]:
                problems.append(f"{change} was committed when {told['job']} had been started")
        for id in sorted(self.committed):
            problems += [f"{id}: {problem}" for problem in self._of_job(id, by_job[id], gone)]
            problems += [
                f"{id}: {problem}" for problem in self._at_the_end(id, by_job[id], killed, found)
            ]
        problems += self._of_pauses(lines)
        for name, times in self.schedules.items():
            problems += [f"{name}: {problem}" for problem in _of_schedule(name, times, lines)]
        return problems

    def _of_pauses(self, lines: list[Mapping[str, Any]]) -> Iterable[str]:
        for line in lines:
            if line["event"] == "start":
                for seen, ended in self.pauses:
                    if seen < line["at"] < ended:
                        late = line["at"] - seen
                        yield f"{line['id']}: started in a pause, {late:.3f} s after it was seen"

    def _of_job(
        self, id: str, lines: list[Mapping[str, Any]], gone: Mapping[int, float]
    ) -> Iterable[str]:
        noted = [line for line in lines if line["event"] == "start"]
        told_cancelled = any(line["event"] == "cancelled" for line in lines)
        is_late = any(late_id == id for late_id, _ in self.late)
        if not noted and not told_cancelled and not is_late and id not in self.cancelled:
            yield "committed, and never started"
        if told_cancelled and id not in self.asked:
            yield "ended as cancelled, and nobody had cancelled it"
        yield from self._of_expiry(id, lines)
        # In the order of the claims. A process that was stopped just before a handler's first line
        # comes to it late: in vain, and after the start of a later claim.
        starts = sorted(noted, key=itemgetter("lease"))
        failures = sum(line["event"] == "retried" for line in lines)
        lives = self.lives.get(id, 1)
        if len(starts) > lives + failures + self.faults:
            yield f"started {len(starts)} times with {failures} failures and {self.faults} faults"
        leases = [line["lease"] for line in starts]
        settled = Counter(line["lease"] for line in lines if line["event"] in SETTLED)
        if any(count > 1 for count in Counter(leases).values()):
            yield f"started more than once under one lease: {leases}"
        for before, after in pairwise(line["lease"] for line in noted):
            if after < before and after in settled:
                yield f"lease {after} was settled, and {before} had been started"
        yield from (
            f"{count} settlements of lease {lease}" for lease, count in settled.items() if count > 1
        )
        ends = [line["lease"] for line in lines if line["event"] in ENDS]
        if len(ends) > lives:
            yield f"ended {len(ends)} times"
        if lives == 1 and ends and starts and max(leases) > min(ends):
            yield f"lease {min(ends)} ended it, and {max(leases)} had been started"
        asked = self.asked.get(id)
        if asked is not None and max(leases, default=0) > asked:
            yield f"cancelled under lease {asked}, and started under {max(leases)}"
        for before, after in pairwise(starts):
            if not self._let_go(before, after, lines, gone):
                yield f"started with lease {after['lease']} while {before['lease']} went on"

    def _of_expiry(self, id: str, lines: list[Mapping[str, Any]]) -> Iterable[str]:
        for line in lines:
            was_late = (id, line.get("lease")) in self.late
            if line["event"] == "start" and was_late:
                yield f"started with lease {line['lease']}, by which it was claimed too late"
            if line["event"] == "expired" and not was_late:
                yield f"ended as expired with lease {line['lease']}, and was not too late"

    def _let_go(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        lines: list[Mapping[str, Any]],
        gone: Mapping[int, float],
    ) -> bool:
        """Whether the claim of the start before was over, or may be believed to have been."""
        if gone.get(before["pid"], float("inf")) <= after["at"]:
            return True
        if (before["id"], before["lease"]) in self.handed_back:
            return True
        told = {
            line["event"]
            for line in lines
            if line.get("lease") == before["lease"] and line["event"] != "start"
        }
        # Observers are told after the commit, and a worker that was frozen is told when it goes on.
        return bool(told & {*SETTLED, "lease_lost"})

    def _at_the_end(
        self,
        id: str,
        lines: list[Mapping[str, Any]],
        killed: Mapping[int, float],
        found: Found,
    ) -> Iterable[str]:
        if id in found.left:
            yield "not ended"
        if id in found.left and id in found.dead:
            yield "both queued and dead"
        gone = self.lives.get(id, 1) - (id in found.left | found.dead | self.cancelled)
        told = Counter(line["event"] for line in lines)
        completed, cancelled = told["completed"], told["cancelled"] + told["expired"]
        # Whoever was killed may not have come to tell.
        untold = gone - completed - cancelled
        if untold > 0 and not killed.keys() & {line["pid"] for line in lines}:
            yield f"gone, and completed {completed} times"
        if id not in self.with_effects:
            return
        effects, expected = found.effects.get(id, 0), gone - cancelled
        if id in self.asked and untold > 0 and effects == expected - untold:
            return  # it was cancelled, and that was not told
        if effects != expected:
            yield f"{effects} effects instead of {expected}"


def _of_schedule(
    name: str, times: Iterable[str], lines: Iterable[Mapping[str, Any]]
) -> Iterable[str]:
    jobs: dict[str, set[str]] = {time: set() for time in times}
    for line in lines:
        if line["event"] == "start" and line.get("schedule") == name:
            jobs.setdefault(line["fire_time"], set()).add(line["id"])
    yield from (f"never fired for {time}" for time, ids in jobs.items() if not ids)
    yield from (f"fired {len(ids)} times for {time}" for time, ids in jobs.items() if len(ids) > 1)
