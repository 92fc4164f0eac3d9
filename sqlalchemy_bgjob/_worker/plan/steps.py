"""The steps that the planner can tell the loop to take."""

from dataclasses import dataclass

from ..._lifecycle.claim import ClaimedJob, Look
from ..._lifecycle.settle import Pending


@dataclass(frozen=True, slots=True)
class Claim:
    """Take due jobs of these queues."""

    looks: tuple[Look, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell producers in which queues this worker waits, so that they notify it."""

    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PassOn:
    """Wake another worker for each of these queues: this one can't take all that there is."""

    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Run a job that was claimed."""

    job: ClaimedJob


@dataclass(frozen=True, slots=True)
class Settle:
    """Write these settlements."""

    items: tuple[Pending, ...]


@dataclass(frozen=True, slots=True)
class HandBack:
    """Queue these jobs again, unstarted and attempt unspent."""

    jobs: tuple[ClaimedJob, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for *seconds*, unless something happens."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Drained: nothing runs, nothing is ready, all is settled."""


Step = Claim | Announce | PassOn | Start | Settle | HandBack | Wait | Finished
