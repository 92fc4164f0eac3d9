"""When a worker polls a queue next, and whether it asks producers to notify it. Pure.

After work a queue is polled again after 5 ms; then the pause doubles each time, up to
``poll_interval``. A worker that has found nothing asks producers to notify: the next one that
commits a job wakes it. From then on, as long as it hears them, work does not shorten the pause, and
it grows to six times ``poll_interval``.

A producer wakes some of those who wait, and tells them how many more there are. A worker that can't
take all that there is wakes one of those: it passes the wake-up on.
"""

import random
from enum import Enum
from typing import Final

from ..._sql.words import WOKEN

FIRST_POLL: Final = 0.005
"""Seconds until a queue is polled again after work, after producers were told to notify, and after
a scheduled job; then the pause doubles each time."""
HEARD: Final = 6.0
"""The longest pause between two polls, in poll intervals, where producers notify."""
LATE: Final = 1.0
"""Seconds for which jobs may still be committed whose statement came before producers were told to
notify; the pauses between polls grow no longer than that meanwhile."""
ASKED_AFTER: Final = 0.1
"""Seconds after a notified claim that has found jobs until it is asked when the next one is due: a
delayed job may have been committed with them."""
SUSTAINED: Final = 1.0
"""Seconds of work without a pause after which producers need not notify."""
GAP: Final = 0.010
"""Seconds between two claims that are a pause in the work."""
MANY: Final = 200
"""Notifications of a queue within a second, estimated from those that this worker hears, after
which producers need not notify for a second."""
SPARED: Final = 1.0
SPARED_POLL: Final = 0.01
"""The longest pause meanwhile between two polls of the queue, whichever worker polls."""
IN_VAIN: Final = 20
"""Notified polls in a row that found nothing, after which the next ones wait: any role that can
connect can notify, however often."""
COOL_DOWN: Final = 0.05
"""Seconds that the next ones wait."""
_NEVER: Final = float("inf")


class Notify(Enum):
    """Whether producers are to notify. A notification costs those who commit, and wakes a worker.

    ========  ================================================  ==========================
    state     event                                             next state
    ========  ================================================  ==========================
    OFF       a poll finds nothing, and this worker hears       WANTED
    WANTED    producers were told                               ON, and poll once more
    ON        it is not known what producers see                WANTED
    ON        for a second each poll finds something, and they  OFF
              come without a GAP, or find all they asked for
    any       MANY notifications within a second                SPARED
    WANTED,   other workers are woken twice in place of this    OFF
    ON        one, which can't look meanwhile
    SPARED    a second later, a poll finds nothing, and this    WANTED
              worker hears
    ========  ================================================  ==========================

    *Poll once more*, and then ever more rarely: jobs did not notify whose statement came before the
    change, and they may be committed after that poll. They may be of a priority that no poll has
    seen yet, so a poll that finds nothing is followed by a head scan, for as long as the pauses are
    short. In state SPARED polling finds new jobs:
    producers that notify wait for each other at COMMIT.
    """

    OFF = "each poll finds something anyway"
    WANTED = "this worker is about to tell producers that it waits"
    ON = "who commits a job notifies this worker, or others that wait"
    SPARED = "too many notifications came"


class Polling:
    """The polls of one queue. Times are of a monotonic clock, and given as arguments.

    Args:
        longest: Seconds between two polls of a queue that stays empty (``poll_interval``).
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._at = 0.0
        self._pause = FIRST_POLL
        self._expected_at = _NEVER  # a job that this worker has put off is due then
        self._scheduled_at = _NEVER  # the next job is due then, as a poll has told
        # No poll has told yet when the next job is due: ask after so many seconds.
        self._asks_due_after: float | None = FIRST_POLL
        self._refused_until = 0.0  # the database refuses all claims
        self._paused_until = 0.0  # its jobs find no connection for their sessions
        self._asked = False  # by a notification, since the last claim was sent
        self._by_wake = False  # a notification asked for the claim that was sent last
        self._in_vain = 0  # such claims in a row that found nothing
        self._cool_until = 0.0
        self._notify = Notify.OFF
        self._is_late = False  # jobs may come that did not notify
        self._notified = 0.0
        self._notified_since = 0.0
        self._spared_until = 0.0
        self._busy_since = _NEVER  # since then polls find something, without a gap
        self._worked_at = -_NEVER  # the last poll that has found something
        self._was_full = False  # and that found as much as it could take
        self._others = 0  # workers that waited for the last notification, and were not woken
        self._took_all = False  # a claim that a wake-up asked for was full, and others wait
        self._has_passed_on = False  # since the last claim was sent, as it could not look
        self._found_last = False
        self.woken = False
        """Whether something asked for a poll, and none was sent since."""

    @property
    def waits(self) -> bool:
        """Whether producers are to notify."""
        return self._notify in (Notify.WANTED, Notify.ON)

    @property
    def contended(self) -> bool:
        """Whether a notification asked for the next claim, and has woken another worker too."""
        return self._asked and self._others > 0

    @property
    def due_at(self) -> float:
        """When to poll next."""
        rests_until = max(self._refused_until, self._paused_until)
        return max(min(self._at, self._expected_at, self._scheduled_at), rests_until)

    def is_due(self, now: float) -> bool:
        """Whether to poll now. As ``due_at <= now``, quicker: it is asked whenever a run ends."""
        if now < self._refused_until or now < self._paused_until:
            return False
        return self._at <= now or self._expected_at <= now or self._scheduled_at <= now

    def is_due_within(self, seconds: float, now: float) -> bool:
        """Whether no poll is due, but the regular one is soon and may as well come now.

        Where producers notify, polls are rarer, and *seconds* as much longer.
        """
        rests = now < max(self._refused_until, self._paused_until)
        soon = now + seconds * (HEARD if self._notify is Notify.ON else 1.0)
        return now < self.due_at and self._at <= soon and not (self.woken or rests)

    def is_likely(self, now: float) -> bool:
        """Whether a poll should find a job: it is no regular one after another in vain."""
        return self.woken or self._found_last or min(self._expected_at, self._scheduled_at) <= now

    def announced(self, known: bool) -> None:
        """Producers were told whether this worker waits; or it is unknown what they see."""
        if known and self._notify is Notify.WANTED:
            self._notify, self._at, self._pause = Notify.ON, 0.0, FIRST_POLL
            self._is_late = True
        elif not known and self._notify is Notify.ON:
            self._notify = Notify.WANTED

    def wake(self, now: float, *, others: int = 0) -> None:
        """A poll is asked for: it is due at once, unless many such polls found nothing.

        *others* is how many more workers wait that were not woken.
        """
        self.woken = self._asked = True
        self._others = others
        self._count_notification(now)
        self._at = min(self._at, self._soonest(now))

    @property
    def may_pass_on(self) -> bool:
        """Whether other workers wait for what this one was woken for, or could not take."""
        return self._took_all or (self.woken and self._others > 0)

    def passes_on(self, now: float, *, can_look: bool) -> bool:
        """Whether another worker is to be woken: this one can't look soon, or took all it could."""
        rests = now < max(self._refused_until, self._paused_until)
        return self._took_all or (self.may_pass_on and (rests or not can_look))

    def passed_on(self) -> None:
        """Another worker is woken.

        If this one can't look, and passes on for the second time, producers need not wake it until
        it has looked again.
        """
        if not self._took_all:
            if self._has_passed_on and self.waits:
                self._notify = Notify.OFF
            self._has_passed_on = True
        self._took_all, self._others = False, 0

    def refused(self, until: float) -> None:
        """The database refused a claim: leave the queue alone until then."""
        self._refused_until = until

    def pause(self, until: float) -> None:
        """Jobs of the queue find no connection: leave it alone until then, or until told again."""
        self._paused_until = until

    def expect(self, at: float) -> None:
        """A job will be due at that time: poll then, if not before."""
        # Kept apart from the next poll: a claim that was sent before may not see the job.
        self._expected_at = min(self._expected_at, at)

    def sent(self, now: float) -> bool:
        """A claim was sent: a wake-up from now on asks for another one.

        Returns whether jobs may be there that did not notify.
        """
        self._by_wake, self._asked = self._asked, False
        self.woken = self._has_passed_on = False
        is_expected = self._expected_at <= now
        if is_expected:
            self._expected_at = _NEVER
        if self._scheduled_at <= now:
            self._scheduled_at, self._asks_due_after = _NEVER, FIRST_POLL
        return is_expected or self._is_late

    def polled(
        self,
        found: int,
        now: float,
        *,
        limit: int,
        due_in: float | None,
        scan_in: float,
        listening: bool,
    ) -> None:
        """A claim has ended: plan the next one.

        Args:
            found: How many jobs it took.
            now: The time.
            limit: How many it could take.
            due_in: Seconds until the next job is due; None if that was not asked.
            scan_in: Seconds until the head of the queue should be scanned.
            listening: Whether notifications arrive.
        """
        if found:
            self._in_vain = 0
            self._work(now, is_full=found >= limit)
            if not (listening and self._notify is Notify.ON):
                self._pause = FIRST_POLL
        else:
            self._in_vain += self._by_wake
            self._cool_until = now + COOL_DOWN
            self._busy_since = _NEVER
            if listening and not self.waits and now >= self._spared_until:
                self._notify = Notify.WANTED
        self._found_last = found > 0
        woken = self._took_all or self._by_wake or self._asked
        self._took_all = found >= limit and woken and self._others > 0
        if due_in is not None:
            # The earlier of both: a claim that was answered in two parts may have missed that job.
            self._scheduled_at = min(self._scheduled_at, now + max(due_in, 0.0) + 0.001)
        if due_in is not None or not found:
            self._asks_due_after = None
        elif self._by_wake and self._asks_due_after is None:
            self._asks_due_after = ASKED_AFTER
        if found >= limit or self.woken or (not found and scan_in == 0.0):
            self.woken = False
            self._at = self._soonest(now)
        else:
            longest = self._longest * (HEARD if listening and self._notify is Notify.ON else 1.0)
            self._at = now + min(self._next_pause(now, longest, found=found > 0), scan_in)

    def _work(self, now: float, *, is_full: bool) -> None:
        """A poll has found something: there may be no need for notifications."""
        gap = now >= self._worked_at + GAP and not self._was_full
        self._worked_at, self._was_full = now, is_full
        self._busy_since = now if gap else min(self._busy_since, now)
        if self.waits and now >= self._busy_since + SUSTAINED:
            self._notify = Notify.OFF

    def _next_pause(self, now: float, longest: float, *, found: bool) -> float:
        pause = min(self._pause, longest)
        if self._asks_due_after is not None:
            pause = min(pause, self._asks_due_after)
        else:
            if not (found and self._is_late):
                self._pause = min(pause * 2, longest)
            self._is_late = self._is_late and pause < min(LATE, longest)
        if now < self._spared_until:
            left = self._spared_until - now
            often = SPARED_POLL * self._share
            pause = min(pause, often if self._in_vain < IN_VAIN else left)
        return pause * random.uniform(0.9, 1.0)  # workers that started together drift apart

    def _soonest(self, now: float) -> float:
        return now if self._in_vain < IN_VAIN else max(now, self._cool_until)

    def _count_notification(self, now: float) -> None:
        if now >= self._notified_since + 1.0:
            self._notified_since, self._notified = now, 0
        self._notified += self._share
        if self._notified >= MANY:
            self._notify, self._spared_until = Notify.SPARED, now + SPARED

    @property
    def _share(self) -> float:
        """The notifications of the queue for each one that this worker hears."""
        return 1.0 + self._others / WOKEN
