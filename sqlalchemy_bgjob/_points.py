"""Signal points: named places in the engine where a test looks on, waits, fails, or dies.

In production nobody listens, and a point costs one test of an empty tuple::

    if CLAIM.listeners:
        CLAIM.reached(jobs)

Tests use them through :mod:`sqlalchemy_bgjob.testing.points`. A listener runs in the thread or
greenlet that reached the point, and an error it raises is raised there, as if the step had failed.
At STARTING and DRAIN_INTERRUPTED it must not raise: no step can fail there. The idea is River's,
whose tests wait at a ``testsignal``.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Point:
    """One signal point; :data:`POINTS` has all of them by name."""

    __slots__ = ("listeners", "meaning", "name")

    def __init__(self, name: str, meaning: str) -> None:
        self.name: Final[str] = name
        self.meaning: Final[str] = meaning
        self.listeners: tuple[Callable[[Any], object], ...] = ()

    def reached(self, fact: Any = None) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener(fact)


CLAIMING: Final = Point("claiming", "A claim is about to be sent. Fact: the queue.")
CLAIM: Final = Point(
    "claim", "A claim was committed, and its jobs are in nobody's hands yet. Fact: the jobs."
)
STARTING: Final = Point(
    "starting", "A job becomes a run, under the worker's lock. Fact: the claimed job."
)
CONNECTING: Final = Point("connecting", "A handler's session is about to connect. No fact.")
UNCONNECTED: Final = Point(
    "unconnected", "A handler's session could not connect, and it is not told. Fact: the error."
)
HANDLER: Final = Point(
    "handler", "A handler has ended, and nothing of it is committed. Fact: the claimed job."
)
WRITE: Final = Point(
    "write",
    "Settlements were written, and not committed. Fact: the ids whose lease held, if any.",
)
SETTLE: Final = Point(
    "settle", "Settlements were committed, and nobody was told. Fact: the settlements."
)
BEATING: Final = Point("beating", "A heartbeat is about to be written. Fact: the connection.")
BEAT: Final = Point(
    "beat", "A heartbeat was committed, or found that its worker is lost. Fact: the worker's id."
)
SWEEPING: Final = Point(
    "sweeping",
    "The rescuer is about to look. Fact: for what: ended, silent, rest, orphans, unknown, health, "
    "retention.",
)
FIRING: Final = Point("firing", "A schedule that is due is about to be fired. Fact: its name.")
JUDGING: Final = Point("judging", "A rescue is about to begin its transaction. No fact.")
JUDGED: Final = Point(
    "judged", "A rescue has locked a worker's row, and marked nothing yet. Fact: the worker's id."
)
RETURNING: Final = Point(
    "returning", "Unknown claims are about to be returned. Fact: the connection."
)
DRAIN_INTERRUPTED: Final = Point(
    "drain_interrupted",
    "A drain did not end in time, and runs were released. Fact: how often, from 1.",
)
NOTIFYING: Final = Point(
    "notifying", "Workers are about to be told of jobs that were given back. Fact: the queues."
)
COPYING: Final = Point("copying", "A COPY was begun, and no job is sent yet. No fact.")

POINTS: Final[dict[str, Point]] = {
    point.name: point for point in list(globals().values()) if isinstance(point, Point)
}
