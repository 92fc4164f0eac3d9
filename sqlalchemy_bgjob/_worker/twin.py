"""A synchronous engine that connects as an asynchronous one does: for functions of AsyncWorker.

For psycopg, where both take the same arguments. A URL alone is not enough: certificates and search
paths are in ``connect_args``, and passwords that expire come from a "do_connect" listener.
"""

from collections.abc import Callable
from inspect import getclosurevars
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event

from .._db.connections import connects_by_url, engine_like
from .._db.errors import passes_by_itself, summary
from .._handlers.served import GIVE_SYNC_ENGINE
from ..exceptions import WorkerRefused

_POOL_EVENTS: Final = (
    "connect",
    "first_connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
)


def sync_twin(engine: Engine, pool_size: int) -> Engine:
    """A synchronous engine with the arguments, listeners and options of an asynchronous one.

    Raises:
        ValueError: The engine connects in a way that needs an event loop.
    """
    arguments = _arguments(engine)
    if arguments is None or any(map(_is_async, arguments.items())):
        raise ValueError(
            f"the engine makes its connections in a way of its own, by a creator or a class for "
            f"asyncio, which functions in threads can't use; {GIVE_SYNC_ENGINE}"
        )
    dialect: Any = engine.dialect
    twin = create_engine(
        engine.url.set(drivername="postgresql+psycopg"),
        connect_args=arguments,
        pool_size=pool_size,
        pool_pre_ping=engine.pool._pre_ping,  # noqa: SLF001
        pool_recycle=engine.pool._recycle,  # noqa: SLF001
        isolation_level=dialect._on_connect_isolation_level,  # noqa: SLF001
        json_serializer=dialect._json_serializer,  # noqa: SLF001
        json_deserializer=dialect._json_deserializer,  # noqa: SLF001
    )
    if dialect._has_events:  # noqa: SLF001
        event.listen(twin, "do_connect", _do_connect(dialect))
    for name in _POOL_EVENTS:
        for listener in getattr(engine.pool.dispatch, name).listeners:
            if not listener.__module__.startswith("sqlalchemy."):  # the twin has its own of those
                event.listen(twin.pool, name, listener)
    return engine_like(engine, twin.pool, twin.dialect, twin.url)


def check_twin(twin: Engine) -> None:
    """Connect once, to fail at the start and not in each job; ignores errors that may pass.

    Raises:
        WorkerRefused: The twin can't connect.
    """
    try:
        twin.connect().close()
    except Exception as error:
        if not passes_by_itself(error):
            problem = f"functions can't connect as the AsyncEngine does: {summary(error)}"
            raise WorkerRefused(problem, GIVE_SYNC_ENGINE) from error


def _arguments(engine: Engine) -> dict[str, Any] | None:
    """The arguments that ``create_engine`` connects with; None if a creator connects."""
    if not connects_by_url(engine):
        return None
    creator: Any = engine.pool._creator  # noqa: SLF001 - there is no public way
    found = getclosurevars(creator).nonlocals
    if found.get("cargs_tup") or "cparams" not in found:
        return None
    return dict(found["cparams"])


def _is_async(argument: tuple[str, Any]) -> bool:
    name, value = argument
    return name == "async_creator_fn" or (isinstance(value, type) and "Async" in value.__name__)


def _do_connect(dialect: Any) -> Callable[..., None]:
    def do_connect(_: Any, record: Any, args: list[Any], params: dict[str, Any]) -> None:
        for listener in dialect.dispatch.do_connect:
            if listener(dialect, record, args, params) is not None:
                raise TypeError("a do_connect listener makes connections for asyncio itself")

    return do_connect
