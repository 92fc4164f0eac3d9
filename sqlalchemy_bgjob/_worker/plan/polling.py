"""When a worker looks at a queue next, and whether it asks producers to notify it. Pure.

After work a queue is polled 5 ms later, then half as often each time, up to ``poll_interval``. A
worker that has found nothing *waits*: it tells producers so, and the next one that commits a job
notifies it. Notifications cost those who commit, and wake workers; so they are done without while

* each look finds something anyway,
* so many come that producers would wait for each other,
* they lead to nothing: anybody who may connect can notify, however often.
"""

import random
from typing import Final

FIRST_POLL: Final = 0.005
"""After work, a queue is looked at again this soon, then half as often."""
SUSTAINED: Final = 1.0
"""Seconds of work without a pause after which producers are spared the notifications."""
MANY: Final = 200
"""Notifications within a second after which producers are spared them for a second."""
SPARED: Final = 1.0
SPARED_POLL: Final = 0.01
"""The longest pause between two polls meanwhile."""
IN_VAIN: Final = 20
"""Looks in a row that a notification asked for and that found nothing: then the next ones wait."""
COOL_DOWN: Final = 0.05
"""Seconds from such a look to the next."""
_NEVER: Final = float("inf")


class Polling:
    """The looks at one queue. Times are of a monotonic clock, and given as arguments.

    Args:
        longest: Seconds between two looks at a queue that stays empty (``poll_interval``).
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._at = 0.0
        self._pause = FIRST_POLL
        self._expected_at = _NEVER  # a job that this worker has put off is due then
        self._refused_until = 0.0  # the database refuses all claims
        self._paused_until = 0.0  # its jobs find no connection for their sessions
        self._asked = False  # by a notification, since the last claim was sent
        self._by_wake = False  # the claim that was sent last had been asked for
        self._in_vain = 0  # such claims in a row that found nothing
        self._cool_until = 0.0
        self._notified = 0
        self._notified_since = 0.0
        self._spared_until = 0.0
        self._busy_since = _NEVER  # every look since then has found something
        self.woken = False
        """Whether something asked for a look, and none was sent since."""
        self.waits = False
        """Whether producers are to notify."""

    @property
    def due_at(self) -> float:
        """When to look next."""
        rests_until = max(self._refused_until, self._paused_until)
        return max(min(self._at, self._expected_at), rests_until)

    def wake(self, now: float) -> None:
        """Something asks for a look: it is due at once, unless many have led to nothing."""
        self.woken = self._asked = True
        self._count_notification(now)
        self._at = min(self._at, self._soonest(now))

    def refused(self, until: float) -> None:
        """The database refused a claim: leave the queue alone until then."""
        self._refused_until = until

    def pause(self, until: float) -> None:
        """Jobs of the queue find no connection: leave it alone until then, or as told anew."""
        self._paused_until = until

    def expect(self, at: float) -> None:
        """A job will be due at that time: look then, if not before."""
        # Apart from the next poll: a claim that is on its way has not seen the job.
        self._expected_at = min(self._expected_at, at)

    def sent(self, now: float) -> bool:
        """A claim is on its way: what wakes the worker from now on asks for another one.

        Returns whether it is to find a job that was expected.
        """
        self._by_wake, self._asked = self._asked, False
        self.woken = False
        is_expected = self._expected_at <= now
        if is_expected:
            self._expected_at = _NEVER
        return is_expected

    def polled(
        self,
        found: int,
        now: float,
        *,
        limit: int,
        due_in: float | None,
        look_in: float,
        listening: bool,
    ) -> None:
        """A claim ended: when is the next one worth its while?

        Args:
            found: How many jobs it took.
            now: The time.
            limit: How many it was to take.
            due_in: Seconds until the next job is due, if that was asked.
            look_in: Seconds until the head of the queue should be looked at.
            listening: Whether notifications arrive.
        """
        if found:
            self._in_vain = 0
            self._pause = FIRST_POLL
            self._busy_since = min(self._busy_since, now)
            self.waits = self.waits and now < self._busy_since + SUSTAINED
        else:
            self._in_vain += self._by_wake
            self._cool_until = now + COOL_DOWN
            self._busy_since = _NEVER
            if listening and not self.waits and now >= self._spared_until:
                # Said first, then looked once more: what was committed before it was said did not
                # notify.
                self.waits, self.woken = True, True
        if found >= limit or self.woken or (not found and look_in == 0.0):
            self.woken = False
            self._at = self._soonest(now)
        else:
            self._at = now + min(self._next_pause(now, due_in), look_in)

    def _next_pause(self, now: float, due_in: float | None) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, self._longest)
        if now < self._spared_until:
            # Producers don't notify until then: what they add is found a moment later, not a poll.
            left = self._spared_until - now
            pause = min(pause, SPARED_POLL if self._in_vain < IN_VAIN else left)
        pause *= random.uniform(0.9, 1.0)  # workers that started together part company
        return pause if due_in is None else min(pause, max(due_in, 0.0) + 0.001)

    def _soonest(self, now: float) -> float:
        return now if self._in_vain < IN_VAIN else max(now, self._cool_until)

    def _count_notification(self, now: float) -> None:
        # Committers that notify wait for each other: of many of them, none is needed.
        if now >= self._notified_since + 1.0:
            self._notified_since, self._notified = now, 0
        self._notified += 1
        if self._notified >= MANY:
            self.waits, self._spared_until = False, now + SPARED
