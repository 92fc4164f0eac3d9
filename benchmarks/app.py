"""What the comparison adds to the application of ``bench``: ``python -m benchmarks.app``.

``fill``, ``stream``, ``together``, ``mixed`` and ``web`` are producers. ``by_hand``, ``raw`` and
``poll`` are yardsticks: what the same work costs when it is written by hand, what the statements
allow without any worker around them, and what a poll that finds nothing reads.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from benchmarks import producers
from benchmarks.jobs import App
from benchmarks.web import web
from sqlalchemy_bgjob._bench.app import COMMANDS as OF_BENCH
from sqlalchemy_bgjob._bench.app import main
from sqlalchemy_bgjob._bench.jobs import Answer
from sqlalchemy_bgjob._bench.producers import enqueue_one_by_one


def _yardstick(name: str) -> Callable[[Any], Answer]:
    """A command of ``yardsticks``, which imports a driver that the other processes do not need."""

    def command(app: App) -> Answer:
        from benchmarks import yardsticks  # noqa: PLC0415 - see above

        answer: Answer = getattr(yardsticks, name)(app)
        return answer

    return command


COMMANDS: Final[Mapping[str, Callable[[Any], Answer]]] = {
    **OF_BENCH,
    "enqueue": partial(enqueue_one_by_one, ways=producers.WAYS),
    "fill": producers.fill,
    "stream": producers.stream,
    "together": producers.together,
    "mixed": producers.mixed,
    "web": web,
    "remaining": _yardstick("remaining"),
    "by_hand": _yardstick("by_hand"),
    "raw": _yardstick("raw"),
    "poll": _yardstick("poll"),
}

if __name__ == "__main__":
    main(COMMANDS, App)
