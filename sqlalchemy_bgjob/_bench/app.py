"""The application of the benchmark: ``python -m sqlalchemy_bgjob._bench.app COMMAND DSN [JSON]``.

Each process runs one command and prints one line of JSON on stdout, with times of
``time.monotonic()``. DSN is a URL for SQLAlchemy or libpq; ``-`` takes it from BGJOB_DATABASE_URL,
because everybody can read the arguments of a process.

``install``, ``bulk``, ``enqueue`` and ``pulse`` are the producer's, ``work`` is the worker's.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from .jobs import Answer, App, Options
from .producers import bulk, enqueue_one_by_one, install, pulse
from .worker import work

A = TypeVar("A", bound=App)

COMMANDS: Final[Mapping[str, Callable[[App], Answer]]] = {
    "install": install,
    "enqueue": enqueue_one_by_one,
    "bulk": bulk,
    "pulse": pulse,
    "work": work,
}


def main(commands: Mapping[str, Callable[[A], Answer]], app: Callable[[str, Options], A]) -> None:
    """Run the command of the command line and print its answer."""
    name, dsn, *rest = sys.argv[1:]
    options: Options = json.loads(rest[0]) if rest else {}
    # Only the answer goes to stdout.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer: Any = commands[name](app(dsn, options))
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(COMMANDS, App)
