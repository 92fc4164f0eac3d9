"""Identifiers: UUIDv7 text for jobs, random 63-bit numbers for workers.

A UUIDv7 (RFC 9562) begins with the time, so rows of one process land side by side in the
primary key, and its text sorts by age. Within one process ids only ever grow, even within a
millisecond and when the clock is set back, so jobs of one transaction keep their order.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator

_RANDOM_BITS = 74  # 12 (rand_a) + 62 (rand_b) of RFC 9562
_RAND_B_BITS = 62
_RAND_B_MASK = (1 << _RAND_B_BITS) - 1
_VARIANT = 0b10 << _RAND_B_BITS
_LAST_GROUP_BITS = 48
_LAST_GROUP_MASK = (1 << _LAST_GROUP_BITS) - 1
# A step of up to 2^32 keeps neighbours unguessable and leaves room for 2^41 ids a millisecond.
_STEP_BYTES = 4


class _Monotonic:
    """The last value handed out, guarded by a lock."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: a forked child must not repeat its parent's ids, nor inherit a held lock."""
        self.lock = threading.Lock()
        self.last = 0

    def next(self, milliseconds: int, count: int) -> list[int]:
        """The next 122-bit values: time in the high bits, random in the low ones, ascending."""
        steps = memoryview(os.urandom(count * _STEP_BYTES)).cast("I")
        values = []
        with self.lock:
            last = self.last
            for step in steps:
                if milliseconds > last >> _RANDOM_BITS:
                    # The top random bit starts at 0, so that steps do not overflow into the time.
                    low = secrets.randbits(_RANDOM_BITS - 1)
                    last = milliseconds << _RANDOM_BITS | low
                else:
                    last += 1 + step
                values.append(last)
            self.last = last
        return values


_state = _Monotonic()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.reset)


def new_ids(count: int) -> list[str]:
    """New job ids: UUIDv7 text, ascending, greater than all that this process made before."""
    return list(_texts(_state.next(time.time_ns() // 1_000_000, count)))


def new_id() -> str:
    """One new job id; see :func:`new_ids`."""
    return new_ids(1)[0]


def _texts(values: Iterable[int]) -> Iterator[str]:
    # Neighbours differ in their last group only.
    last, first = -1, ""
    for value in values:
        if value >> _LAST_GROUP_BITS != last:
            last = value >> _LAST_GROUP_BITS
            high, low = value >> _RAND_B_BITS, value & _RAND_B_MASK
            digits = f"{high:015x}{_VARIANT | low:016x}"
            first = f"{digits[:8]}-{digits[8:12]}-7{digits[12:15]}-{digits[15:19]}-"
        yield f"{first}{value & _LAST_GROUP_MASK:012x}"


def new_worker_id() -> int:
    """A new worker id: positive, 63 random bits, never taken over from an earlier worker."""
    return secrets.randbits(63) or 1
