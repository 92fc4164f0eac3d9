"""The application of the benchmarks: ``python -m sqlalchemy_bgjob._bench.app COMMAND DSN [JSON]``.

It speaks the protocol of the adapters in ``benchmarks/peers``: one command a process, one line of
JSON on stdout, times of ``time.monotonic()``. DSN is a URL for SQLAlchemy or libpq; ``-`` takes it
from BGJOB_DATABASE_URL, because everybody can read the arguments of a process.

``install``, ``bulk``, ``fill``, ``enqueue``, ``pulse``, ``stream`` and ``remaining`` are a
producer's part, ``work`` a worker's. ``by_hand`` and ``raw`` are the yardsticks: what the same
work costs when it is written by hand, and what the statements allow without any worker around
them. ``poll`` tells what a poll that finds nothing reads.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Final

from .jobs import Answer, App, Options
from .producers import bulk, enqueue_one_by_one, fill, install, pulse, remaining, stream
from .worker import work
from .yardsticks import by_hand, poll, raw

COMMANDS: Final[Mapping[str, Callable[[App], Answer]]] = {
    "install": install,
    "enqueue": enqueue_one_by_one,
    "bulk": bulk,
    "fill": fill,
    "pulse": pulse,
    "stream": stream,
    "work": work,
    "by_hand": by_hand,
    "raw": raw,
    "poll": poll,
    "remaining": remaining,
}


def main() -> None:
    """Run the command of the command line and print its answer."""
    name, dsn, *rest = sys.argv[1:]
    options: Options = json.loads(rest[0]) if rest else {}
    # Only the answer goes to stdout.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = COMMANDS[name](App(dsn, options))
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
