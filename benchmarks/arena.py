"""The arenas of other queues, which differ in what their programs can do."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy_bgjob._bench.arena import FULL_DRAIN, Arena
from sqlalchemy_bgjob._bench.program import Answer, Running

PAUSE: Final = 0.02
"""How often to look for the end of a drain, where the end is not in the workers' notes."""


@dataclass
class PeerArena(Arena):
    """Another queue, with a database for itself.

    Attributes:
        can_empty: Whether clean_sql leaves no job; else what is left is done by a worker.
        batched: Whether a handler is called with many jobs, which are not done one by one.
        drained_at: When the last drain was seen to have ended.
    """

    can_empty: bool = True
    batched: bool = False
    drained_at: float = 0.0

    @staticmethod
    def told(installed: Answer) -> Mapping[str, Any]:
        """The fields that the answer to ``install`` gives."""
        clean = list(installed.get("clean_sql", ()))
        return {
            **Arena.told({**installed, "clean_sql": clean}),
            # Else autovacuum would come in another's run.
            "clean_sql": [*clean, "VACUUM ANALYZE"],
            "can_empty": bool(clean),
            "batched": bool(installed.get("batched")),
        }

    def clean(self) -> None:
        """Leave no job behind."""
        if not self.can_empty and self.scalar(self.remaining_sql):
            with self.program.start("work") as worker:
                self.wait_until_drained(FULL_DRAIN, [worker])
                worker.stop()
        super().clean()

    def drain(self, jobs: int, *, processes: int = 1, **options: Any) -> list[Answer]:
        """Let workers do all jobs that are there; whole batches end when no job is left."""
        answers = super().drain(jobs, processes=processes, **options)
        return [ended(answer, self.drained_at) for answer in answers] if self.batched else answers

    def pause(self, jobs: int) -> float:
        """Seconds between two looks for the end of a drain."""
        return PAUSE if self.batched else super().pause(jobs)

    def wait_until_drained(self, jobs: int, workers: Iterable[Running]) -> None:
        """Return when no job is left."""
        super().wait_until_drained(jobs, workers)
        self.drained_at = time.monotonic()


def ended(answer: Answer, at: float) -> Answer:
    """The notes of a worker of whole batches, whose last ones were done by then.

    They are of the starts of batches, with the jobs that were done before.
    """
    return {**answer, "last": at} if answer["count"] else answer
