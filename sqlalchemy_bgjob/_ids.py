"""Identifiers: UUIDv7 text for jobs, random 63-bit numbers for workers.

A UUIDv7 (RFC 9562) begins with the time, so rows of one process land side by side in the
primary key, and its text sorts by age. Within one process the values only ever grow, also
within a millisecond and when the clock is set back: jobs of one transaction keep their order.
"""

import os
import secrets
import threading
import time
from uuid import UUID

_RANDOM_BITS = 74  # 12 (rand_a) + 62 (rand_b) of RFC 9562
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1
# A step of up to 2^32 keeps neighbours unguessable and leaves room for 2^41 ids a millisecond.
_STEP_BITS = 32


class _Monotonic:
    """The last value handed out, guarded by a lock."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: a forked child must not repeat its parent, nor inherit a held lock."""
        self.lock = threading.Lock()
        self.last = 0

    def next(self, milliseconds: int) -> int:
        """The next 122-bit value: time above, random below, greater than all before."""
        with self.lock:
            if milliseconds > self.last >> _RANDOM_BITS:
                # The top random bit starts at 0, so that steps do not overflow into the time.
                low = secrets.randbits(_RANDOM_BITS - 1)
                self.last = milliseconds << _RANDOM_BITS | low
            else:
                self.last += 1 + secrets.randbits(_STEP_BITS)
            return self.last


_state = _Monotonic()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.reset)


def new_id() -> str:
    """A new job id: the text of a UUIDv7, greater than every id made before in this process."""
    value = _state.next(time.time_ns() // 1_000_000)
    time_part, rand = value >> _RANDOM_BITS, value & _RANDOM_MASK
    rand_a, rand_b = rand >> 62, rand & ((1 << 62) - 1)
    return str(UUID(int=time_part << 80 | 7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b))


def new_worker_id() -> int:
    """A new worker id: positive, 63 random bits, never adopted from an earlier process."""
    return secrets.randbits(63) or 1
