"""A chunk: one run of several jobs of one handler, which is called once for all of them.

They share a session, and so they share a commit: what the handler has written is committed with the
ends of all of them, or not at all. What is theirs alone is here: whether a job's arg can be
decoded, whether it is to be cancelled, and what the handler says of it.
"""

import time
from collections.abc import Mapping
from typing import Any

from .._handlers.outcomes import Complete, Outcome, as_outcome
from .._handlers.registry import JobType
from .._lifecycle.claim import ClaimedJob
from ..exceptions import InvalidArg
from ..telemetry import JobInfo
from .run import Run, job_info


def run_of(job: ClaimedJob, handler: JobType[Any]) -> Run:
    """A run of a job, and of those that it is started with."""
    return Run(job, handler) if handler.options.chunk is None else ChunkRun(job, handler)


class ChunkRun(Run):
    """One call for the jobs of a chunk; of one job that has failed before, for it alone.

    Attributes:
        refused: What is wrong with args that can't be decoded, by job id. The handler is not
            called for these.
    """

    def __init__(self, job: ClaimedJob, handler: JobType[Any]) -> None:
        super().__init__(job, handler)
        self.jobs = (job, *job.mates)
        self.refused: dict[str, InvalidArg] = {}
        self._infos: dict[str, JobInfo] = {}
        self._asked: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()

    def args(self) -> list[Any]:
        """The decoded args of the jobs; those that can't be decoded are in :attr:`refused`."""
        args: list[Any] = []
        for job in self.jobs:
            try:
                args.append(self.handler.decode(job.arg, job.headers))
            except InvalidArg as error:
                self.refused[job.id] = error
        self._look_whether_all_are_asked()  # of those that are left, perhaps since a while
        return args

    @property
    def called(self) -> list[ClaimedJob]:
        """The jobs that the handler is called for."""
        return [job for job in self.jobs if job.id not in self.refused]

    @property
    def is_plain(self) -> bool:
        """Never: each job has an end of its own."""
        return False

    # ---- cancel -----------------------------------------------------------------------------

    def ask(self, job: ClaimedJob) -> bool:
        """Note that somebody wants a job to be cancelled; whether nothing is left to be done."""
        self._asked |= {job.id}
        self._look_whether_all_are_asked()
        return self.asked_at is not None

    def _look_whether_all_are_asked(self) -> None:
        """All that the handler is called for. The loop looks, and the handler's thread."""
        called = self.called
        if self.asked_at is None and called and all(self.is_asked(one) for one in called):
            self.asked_at = time.monotonic()

    def is_asked(self, job: ClaimedJob) -> bool:
        """Whether somebody wants a job to be cancelled."""
        return job.id in self._asked

    def tell_asked(self) -> frozenset[str]:
        """Tell the handler the ids of its jobs that are to be cancelled."""
        self._told = self._asked
        return self._told

    def is_given_up(self, said: object) -> bool:
        """Whether all jobs end as cancelled: all were asked to, and the handler completed none."""
        if self.asked_at is None:
            return False
        outcomes = said.values() if isinstance(said, Mapping) else (said,)
        return not any(isinstance(outcome, Complete) for outcome in outcomes)

    def ends_cancelled(self, job: ClaimedJob, outcome: Outcome | None) -> bool:
        """Whether a job ends as cancelled, after the handler has returned this of it.

        A handler that did not know of it has done the job, and then it is complete.
        """
        if isinstance(outcome, Complete) or job.id not in self._asked:
            return False
        return outcome is not None or self.asked_at is not None or job.id in self._told

    # ---- what the handler says --------------------------------------------------------------

    def report(self, done: float, of: float | None, note: str | None) -> None:
        """Refuse it: nobody could tell whose progress it is."""
        raise RuntimeError(
            f"the handler of {self.handler.type!r} takes chunks, and ctx.progress is of one job; "
            f"what became of each job may be told by Complete(result=...)"
        )

    def outcomes(self, returned: object) -> dict[str, Outcome | None]:
        """What a handler that returned has said of each job; None if it has named no outcome.

        Raises:
            TimeoutError: It returned after its deadline, and did not name the outcome of each.
            TypeError: It returned something else, or named a job that is none of this call.
        """
        named: Mapping[str, Outcome | None]
        ids = [job.id for job in self.called]
        if isinstance(returned, Mapping):
            named = returned
            for id, outcome in named.items():
                if id not in ids:
                    raise TypeError(
                        f"handler of {self.handler.type!r} returned an outcome for {id!r}, which "
                        f"is the id of none of ctx.jobs"
                    )
                as_outcome(outcome, self.handler.type)
        else:
            one = None if returned is None else self._one_for_all(returned)
            named = dict.fromkeys(ids, one)
        said = {id: named.get(id) for id in ids}
        if self.late and None in said.values():
            self.outcome(None)  # raises
        return said

    def _one_for_all(self, returned: object) -> Outcome:
        try:
            return as_outcome(returned, self.handler.type)
        except TypeError as error:
            raise TypeError(f"{error}; or a dict of such outcomes by job id") from None

    # ---- for others -------------------------------------------------------------------------

    def info_of(self, job: ClaimedJob) -> JobInfo:
        """One of its jobs as handlers and observers see it."""
        if job.id not in self._infos:
            self._infos[job.id] = job_info(job)
        return self._infos[job.id]

    @property
    def infos(self) -> tuple[JobInfo, ...]:
        """All jobs that its handler is called for."""
        return tuple(self.info_of(job) for job in self.called)

    def __str__(self) -> str:
        more = len(self.jobs) - 1
        return super().__str__() + (f" (and {more} more, in one call)" if more else "")
