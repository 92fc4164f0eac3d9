"""Look on, wait or fail where a worker has come to a signal point.

    with at("claim", lambda jobs: seen.append(len(jobs))):
        ...

Each point has a name and a fact that it hands on, see :data:`POINTS`. For tests in the worker's own
process; to let a worker die at a point, see :mod:`.faults`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._points import POINTS, Point

__all__ = ["POINTS", "Point", "at"]


@contextmanager
def at(name: str, listener: Callable[[Any], object]) -> Iterator[None]:
    """Call *listener* with the fact of each time that this process comes to a point.

    It is called in the thread or greenlet that has come there, which waits for it. What it raises
    is raised there, as if the step had failed; at ``starting`` and ``interrupted`` it must not.

    Args:
        name: One of :data:`POINTS`.
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
