"""Checks before a worker begins: can it work on this database, with this setup?"""

import logging
import os
from typing import Final

from sqlalchemy import Connection, Engine, Pool, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from .. import schema
from .._db.encodings import encoding_problem
from .._db.errors import sqlstate, summary
from ..exceptions import WorkerRefused
from ..models import Models
from ..schema._foreign_keys import foreign_key_problems
from ..schema._grants import lacks, remedy
from ..schema._row_security import hidden
from ..settings import SPARE_CONNECTIONS

logger = logging.getLogger("sqlalchemy_bgjob")

MIN_POOL = SPARE_CONNECTIONS + 1

_IMPORTED_BY: Final = os.getpid()


def check_dialect(engine: Engine) -> None:
    """Refuse all but PostgreSQL: SQLite silently ignores the row locks that a claim needs."""
    if engine.dialect.name != "postgresql":
        raise ValueError(
            f"a worker needs PostgreSQL, and this engine is for {engine.dialect.name!r}; "
            f"use a URL such as postgresql+psycopg://user:password@host/database"
        )


def own_sockets(engine: Engine) -> None:
    """In a forked process, let an engine forget the connections in its pool.

    They may be the parent's, and two processes that write to one socket corrupt its protocol. They
    are not closed: that would end them for the parent too.
    """
    if os.getpid() != _IMPORTED_BY:
        engine.dispose(close=False)


def refuse_fork(made_by: int) -> None:
    """Refuse to run a worker that another process has made."""
    if os.getpid() != made_by:
        raise RuntimeError(
            "this worker was made before a fork, and shares connections with the parent process; "
            "make it in the process that runs it, for example in a post_fork hook"
        )


def pool_permits(engine: Engine, slots: int) -> int | None:
    """How many handlers may use a session at once; None is no limit.

    Raises:
        ValueError: The pool holds fewer than three connections.
    """
    capacity = _capacity(engine.pool)
    if capacity is None:
        return None
    if capacity < MIN_POOL:
        raise ValueError(
            f"the engine's pool holds {capacity} connections, and a worker needs at least "
            f"{MIN_POOL}; {slots + SPARE_CONNECTIONS} let all {slots} slots use a session at once: "
            f"create_engine(..., pool_size={slots + SPARE_CONNECTIONS})"
        )
    permits = capacity - SPARE_CONNECTIONS
    if permits < slots:
        logger.warning(
            "%d slots share %d connections for ctx.session; for all at once give the engine "
            "pool_size=%d",
            slots,
            permits,
            slots + SPARE_CONNECTIONS,
        )
    return permits


def _capacity(pool: Pool) -> int | None:
    if isinstance(pool, NullPool):
        return None
    if isinstance(pool, QueuePool):
        overflow = pool._max_overflow  # noqa: SLF001 - there is no public way
        # pool_size=0 means no limit, and so does a negative max_overflow.
        return None if pool.size() == 0 or overflow < 0 else pool.size() + overflow
    return 1  # StaticPool, SingletonThreadPool: one connection at a time


def check_database(connection: Connection, models: Models) -> None:
    """Refuse a database that can't be worked on; warn of what will get in the way. Commits.

    Raises:
        WorkerRefused: It is a standby, the role lacks privileges without which nothing is run, or
            row level security hides the rows of a table.
        SchemaOutOfDate: The tables are missing or of another version, or those of records are.
    """
    with connection.begin():
        if connection.execute(text("SELECT pg_is_in_recovery()")).scalar():
            raise WorkerRefused(
                "this server is a standby (pg_is_in_recovery), where nothing can be claimed",
                "connect to the primary, for example with target_session_attrs=read-write",
            )
        if (encoding := encoding_problem(connection)) is not None:
            logger.warning("%s", encoding)
        name, prefix = models.schema, models.table_prefix
        recorded = models.recording is not None
        # First of all: without USAGE on the schema nobody can look for its tables.
        lacking = lacks(connection, "worker", schema=name, table_prefix=prefix, records=recorded)
        if vital := [str(lack) for lack in lacking if lack.vital]:
            raise WorkerRefused("; ".join(vital), remedy(connection, lacking))
        schema.check(connection, schema=name, table_prefix=prefix)
        if recorded:
            schema.records.check(connection, schema=name, table_prefix=prefix)
        for lack in lacking:
            logger.warning("%s; %s", lack, remedy(connection, [lack]))
        unseen = hidden(connection, schema=name, table_prefix=prefix, records=recorded)
        if unseen.for_sure:
            raise WorkerRefused(*unseen.for_sure[0])
        for problem_and_remedy in unseen.beside:
            logger.warning("%s; %s", *problem_and_remedy)
        for risk in unseen.maybe:
            logger.warning("%s", risk)
        for statement in schema.storage_drift(connection, schema=name, table_prefix=prefix):
            logger.warning("a storage parameter is not as designed; run: %s", statement)
        for problem in foreign_key_problems(connection, schema=name, table_prefix=prefix):
            logger.warning("%s", problem)


def cant_register(error: BaseException) -> WorkerRefused:
    """The error of a worker whose loop reaches the database, and whose heart can't register."""
    remedy = "see what `sqlalchemy-bgjob doctor` says of this role and these tables"
    if not isinstance(error, SQLAlchemyError) and sqlstate(error) is None:
        remedy = (
            "heart and rescuer connect from threads of their own, with event loops of their own; "
            "if the engine's connections belong to one loop, give AsyncWorker heart_engine= "
            "(--heart-engine on the command line)"
        )
    return WorkerRefused(f"the worker can't register: {summary(error)}", remedy)
