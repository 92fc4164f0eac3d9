"""Look on, wait or fail where a worker reaches a signal point.

For example::

    with at("claim", lambda jobs: seen.append(len(jobs))):
        ...

Each point has a name, and a fact that it passes to listeners; see :data:`POINTS`. For tests in the
worker's own process; to kill a worker at a point, see :mod:`sqlalchemy_bgjob.testing.faults`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._points import POINTS, Point

__all__ = ["POINTS", "Point", "at"]


@contextmanager
def at(name: str, listener: Callable[[Any], object]) -> Iterator[None]:
    """While the block goes on, call *listener* each time that this process reaches a point.

    It runs in the thread or greenlet that reached the point. An error that it raises is raised
    there, as if the step had failed; at ``starting`` and ``drain_interrupted`` it must not raise.

    Args:
        name: A name in :data:`POINTS`.
        listener: Called with the point's fact.

    Raises:
        ValueError: There is no such point.
    """
    if name not in POINTS:
        raise ValueError(f"the point is {name!r}; it can be one of {', '.join(POINTS)}")
    point = POINTS[name]
    point.listeners += (listener,)
    try:
        yield
    finally:
        left = list(point.listeners)
        left.remove(listener)
        point.listeners = tuple(left)
