"""Which queues a worker serves, and whether its handlers match them.

A job whose type no worker knows is dead after ``unknown_type_grace``. So a worker that was started
without its handlers must not run, and one that seems to lack some of them logs a warning.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from .._db.errors import did_you_mean
from .._db.printable import enumerated
from .._drafts import validation
from ..settings import DEFAULT_CONCURRENCY, Queue
from .registry import JobType, Registry

logger = logging.getLogger("sqlalchemy_bgjob")

_REMEDY = (
    "import the modules that register handlers before the worker starts (on the command line: "
    "--import shop.tasks)"
)
GIVE_SYNC_ENGINE: Final = (
    "pass sync_engine=, an Engine for functions (on the command line: --sync-engine "
    "app:sync_engine)"
)
_GIVE_ASYNC_ENGINE: Final = (
    "use AsyncWorker (on the command line: --engine app:async_engine, or a URL for psycopg or "
    "asyncpg)"
)
ONLY_COROUTINES: Final = (
    f"all handlers are coroutines, which a Worker does not run; {_GIVE_ASYNC_ENGINE}"
)
ONLY_FUNCTIONS: Final = (
    f"all handlers are functions, and their ctx.session needs a synchronous engine; "
    f"{GIVE_SYNC_ENGINE}, or register them with session=False"
)


class UnfitHandlers(ValueError):
    """No handler is registered, or none that this worker can run; raised at a worker's start."""


Queues = Mapping[str, int | Queue] | Iterable[str]
"""What is given as ``queues=`` of a worker."""


def check_queues(queues: Queues) -> dict[str, int]:
    """Check the served queues: names, each with a concurrency from 1 to 10,000.

    In a list of names each has the default concurrency.
    """
    if isinstance(queues, str):
        raise TypeError(
            f"queues={queues!r} is one str; write queues={{{queues!r}: {DEFAULT_CONCURRENCY}}} for "
            f"{DEFAULT_CONCURRENCY} jobs at once, or queues=[{queues!r}]"
        )
    if not isinstance(queues, Mapping):
        queues = _with_default_concurrency(queues)
    if not queues:
        raise ValueError("queues= is empty; name at least one, for example {'default': 10}")
    slots_of = {
        validation.name("queue", name): it.slots if isinstance(it, Queue) else it
        for name, it in queues.items()
    }
    for queue, slots in slots_of.items():
        if not validation.is_int(slots) or not 1 <= slots <= 10_000:
            raise ValueError(
                f"the concurrency {slots!r} of queue {queue!r} is not 1 to 10000 jobs at once; "
                f"write queues={{{queue!r}: {DEFAULT_CONCURRENCY}}} (on the command line: --queue "
                f"{queue}:{DEFAULT_CONCURRENCY})"
            )
    return slots_of


def read_by_time(queues: Queues | None) -> frozenset[str]:
    """Those of the given queues whose jobs are taken by their times before their priorities."""
    given = queues if isinstance(queues, Mapping) else {}
    return frozenset(
        name for name, it in given.items() if isinstance(it, Queue) and it.order == "time"
    )


def _with_default_concurrency(names: object) -> dict[str, int]:
    listed: list[Any] = list(names) if isinstance(names, Iterable) else [None]
    if not all(isinstance(name, str) for name in listed):
        raise TypeError(
            f"queues={names!r} is neither a mapping of names to concurrency, such as "
            f"{{'mail': {DEFAULT_CONCURRENCY}}}, nor a list of names, such as ['mail']"
        )
    if len(set(listed)) < len(listed):
        raise ValueError(f"queues={listed!r} names a queue twice; name each once")
    return dict.fromkeys(listed, DEFAULT_CONCURRENCY)


def served_queues(registry: Registry, queues: Queues | None) -> dict[str, int]:
    """The queues to serve, by default all that handlers name.

    Raises:
        ValueError: No queue is given and no handler names one, or :func:`check_queues` refuses.
    """
    if queues is None:
        require_handlers(registry)
        queues = dict.fromkeys(sorted(registry.queues()), DEFAULT_CONCURRENCY)
    return check_queues(queues)


def served_handlers(registry: Registry, queues: Mapping[str, int]) -> list[JobType[Any]]:
    """The handlers of the queues that are served."""
    return [handler for handler in registry if handler.queue in queues]


def refuse_coroutines(registry: Registry, queues: Mapping[str, int]) -> None:
    """Refuse coroutines in a Worker, which would never run their jobs."""
    coroutines = [h.type for h in served_handlers(registry, queues) if h.is_coroutine]
    if coroutines:
        raise ValueError(
            f"the handlers of {', '.join(map(repr, coroutines))} are coroutines; "
            f"{_GIVE_ASYNC_ENGINE}, or do not serve their queues here"
        )


def require_handlers(registry: Registry) -> None:
    """Refuse to work without any handler.

    Raises:
        UnfitHandlers: None is registered.
    """
    if not list(registry):
        raise UnfitHandlers(f"no handler is registered; {_REMEDY}")


def refuse_lacking_middleware(registry: Registry, can_run: Callable[[JobType[Any]], bool]) -> None:
    """Refuse to run some handlers without a middleware that is of the other kind.

    Raises:
        UnfitHandlers: There is one, and nothing says that they may go without.
    """
    for of_coroutines in (False, True):
        lacking = registry.additions.lacking(is_coroutine=of_coroutines)
        types = [h.type for h in registry if h.is_coroutine is of_coroutines and can_run(h)]
        if lacking is not None and types:
            raise UnfitHandlers(lacking.why_it_lacks(types))


def check_handlers(
    registry: Registry,
    queues: Mapping[str, int],
    *,
    can_run: Callable[[JobType[Any]], bool],
    unless: str,
    grace: float,
) -> None:
    """Refuse to work without a handler to run; warn where handlers and queues do not match.

    Args:
        registry: The handlers, as they are when the worker starts.
        queues: The queues that the worker serves.
        can_run: Whether the worker can run a handler.
        unless: For the error: why it can run none of them, and what to do.
        grace: Seconds until a job of an unknown type is dead.

    Raises:
        UnfitHandlers: There is no handler that this worker can run, or a middleware can't go
            around some of them.
    """
    require_handlers(registry)
    refuse_lacking_middleware(registry, can_run)
    named = registry.queues()
    guesses = [f"{queue!r}{_guess(queue, named)}" for queue in sorted(set(queues) - named)]
    unnamed = f"no handler names the {_queues(guesses)}" if guesses else ""
    if not any(can_run(handler) for handler in registry):
        raise UnfitHandlers(f"{unless}; {unnamed}" if unnamed else unless)
    if unnamed:
        # Only a warning: enqueue(queue=...) may send jobs of any handler there.
        end = f"after {grace:g} s" if grace else "at once"
        words = "%s; jobs there whose type no handler knows are dead %s: %s"
        logger.warning(words, unnamed, end, _REMEDY)
    unserved = sorted(named - set(queues))
    if unserved:
        logger.warning(
            "not served by this worker: the %s, whose jobs wait for another worker",
            _queues(map(repr, unserved)),
        )


def _guess(queue: str, named: set[str]) -> str:
    guess = did_you_mean(queue, named)
    return f" ({guess})" if guess else ""


def _queues(names: Iterable[str]) -> str:
    listed = list(names)
    return f"queue{'s' if len(listed) > 1 else ''} {enumerated(listed)}"
