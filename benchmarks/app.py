"""What the comparison adds to the application of ``bench``: ``python -m benchmarks.app``.

``fill``, ``stream``, ``together``, ``mixed`` and ``web`` are producers. ``by_hand``, ``raw`` and
``poll`` are yardsticks: what the same work costs when it is written by hand, what the statements
allow without any worker around them, and what a poll that finds nothing reads.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from benchmarks import producers, yardsticks
from benchmarks.jobs import App
from benchmarks.web import web
from sqlalchemy_bgjob._bench.app import COMMANDS as OF_BENCH
from sqlalchemy_bgjob._bench.app import main
from sqlalchemy_bgjob._bench.jobs import Answer
from sqlalchemy_bgjob._bench.producers import enqueue_one_by_one

COMMANDS: Final[Mapping[str, Callable[[Any], Answer]]] = {
    **OF_BENCH,
    "enqueue": partial(enqueue_one_by_one, ways=producers.WAYS),
    "fill": producers.fill,
    "stream": producers.stream,
    "together": producers.together,
    "mixed": producers.mixed,
    "web": web,
    "remaining": yardsticks.remaining,
    "by_hand": yardsticks.by_hand,
    "raw": yardsticks.raw,
    "poll": yardsticks.poll,
}

if __name__ == "__main__":
    main(COMMANDS, App)
