"""SQL that inserts jobs, and notifies workers of them."""

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    Float,
    Interval,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal,
    literal_column,
    not_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS
from sqlalchemy.dialects.postgresql import insert as pg_insert

from ..schema._names import qualified
from .words import PARAMETER_PREFIX, SECOND, Tables, parameter, unnest, wake_up, woken

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.types import TypeEngine

INSERTED: Final = (
    *("id", "queue", "type", "arg", "priority", "headers", "next_run_at"),
    *("expires_at", "batch_id"),
)
"""The columns of a job that INSERTs of several jobs give."""
_PLAIN: Final = INSERTED[:-2]
"""Those of jobs that have no more than most have."""


class EnqueueStatements:
    """INSERT of one job, of many, and from a query; and the wake-up by itself."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._job, self._worker = tables, tables.job, tables.worker
        # Built once for each combination of flags: building costs more than sending.
        self.job: Callable[..., Executable] = cache(self._insert_one)
        self.jobs: Callable[..., Executable] = cache(self._insert_many)

    def _insert_one(self, notify: bool, more: bool = False) -> Executable:
        """One job, and with *notify* its wake-up in the same statement.

        Returns its id, or nothing if it exists. Parameters: id, queue, type, arg,
        priority, headers, delay (timedelta) or null, run_at or null; of a job that has *more*
        also expires_in (timedelta), expires_at and batch_id, each or null.
        """
        job = self._job
        start = _start(parameter("delay", Interval), _run_at_parameter())
        inserted = pg_insert(job).values(
            id=parameter("id", Text),
            queue=parameter("queue", Text),
            type=parameter("type", Text),
            arg=parameter("arg", LargeBinary),
            priority=parameter("priority", SmallInteger),
            headers=parameter("headers", JSONB(none_as_null=True)),
            next_run_at=start,
        )
        if more:
            expiry = _expiry(start, _optional("expires_in", Interval))
            inserted = inserted.values(expires_at=expiry, batch_id=_optional("batch_id", Text))
        inserted = inserted.on_conflict_do_nothing(index_elements=[*job.primary_key])
        told = inserted.returning(job.c.id)
        if not notify:
            return told
        done = told.cte("inserted")
        queue = parameter("queue", Text)
        notified = woken(self._worker, self._tables.channel, queue)
        return select(done.c.id, notified.scalar_subquery())

    def _insert_many(self, notify: bool, more: bool = False) -> Executable:
        """Many jobs in one statement, one row for each that did not exist: its id.

        Parameters: those of one job, but each is a list, all of the same length; headers are JSON
        text, delays seconds or null. Those that few jobs have are there if some job has *more*;
        expires_in is seconds.
        """
        return self._insert_from(rows_of_many(with_more=more), notify=notify, more=more)

    @cached_property
    def before_copy(self) -> Executable:
        """When the transaction began; null where COPY is refused for the table's row security.

        It opens the transaction. SQLAlchemy sends BEGIN with its first statement, and knows nothing
        of a COPY: one before that would commit by itself.
        """
        # COPY, which this is for, is not used where schemas are translated.
        name = literal(qualified(self._job.schema, self._job.name), Text)
        secured = func.row_security_active(cast(name, REGCLASS))
        return select(case((not_(secured), func.now())))

    def from_query(
        self, source: Select[Any], *, notify: bool, ignore_duplicates: bool
    ) -> Executable:
        """``INSERT ... SELECT`` from the user's own query; one row for each new job: its id.

        Parameters: see :func:`rows_of_query`.
        """
        rows = rows_of_query(source)
        return self._insert_from(
            rows, notify=notify, more=True, ignore_duplicates=ignore_duplicates
        )

    def _insert_from(
        self, rows: Select[Any], *, notify: bool, more: bool, ignore_duplicates: bool = True
    ) -> Executable:
        job = self._job
        names = list(INSERTED if more else _PLAIN)
        inserted = pg_insert(job).from_select(names, rows)
        if ignore_duplicates:
            inserted = inserted.on_conflict_do_nothing(index_elements=[*job.primary_key])
        if not notify:
            return inserted.returning(job.c.id)
        # A user's own query may name a CTE or a table "inserted".
        done = inserted.returning(job.c.id, job.c.queue).cte("bgjob_inserted")
        # Notifications for each queue, not for each job.
        queues = select(done.c.queue).distinct().subquery("queues")
        notified = woken(self._worker, self._tables.channel, queues.c.queue).lateral("notified")
        # An aggregate: one row, which joins with each job.
        sent = select(func.sum(notified.c.count).label("count")).select_from(
            queues.join(notified, true())
        )
        return select(done.c.id).select_from(done.join(sent.subquery("sent"), true()))

    @cached_property
    def notify(self) -> Executable:
        """See :func:`wake_up`."""
        return wake_up(self._tables.schema, self._tables.prefix)


def rows_of_many(*, with_more: bool = True, **lists: "TypeEngine[Any]") -> Select[Any]:
    """The values of many jobs, in the order of INSERTED, and of *lists* beside them.

    Unless *with_more*, what only few jobs have is left out.
    """
    more: dict[str, Any] = {
        "expires_in": Float(53),
        "expires_at": DateTime(timezone=True),
        "batch_id": Text(),
    }
    given = unnest(
        id=Text(),
        queue=Text(),
        type=Text(),
        arg=LargeBinary(),
        priority=SmallInteger(),
        headers=Text(),
        delay=Float(53),
        run_at=DateTime(timezone=True),
        **(more if with_more else {}),
        **lists,
    )
    start = _start(given.c.delay * SECOND, given.c.run_at)
    columns: list[ColumnElement[Any]] = [
        given.c.id,
        given.c.queue,
        given.c.type,
        given.c.arg,
        given.c.priority,
        cast(given.c.headers, JSONB),
        start,
    ]
    if with_more:
        columns.append(_expiry(start, given.c.expires_in * SECOND, given.c.expires_at))
        columns.append(given.c.batch_id)
    return select(*columns, *(given.c[name] for name in lists))


def rows_of_query(source: Select[Any], *more: str) -> Select[Any]:
    """The values of a job for each row of a query, in the order of INSERTED, and *more* labels.

    The labels id, delay (seconds) and priority are the job's own, *more* are the library's; all
    others become the JSON object of the arg. Parameters: queue, type, headers, run_at, expires_in
    (timedelta), expires_at, batch_id, and delay (timedelta) and priority unless they are labels.
    """
    rows = source.subquery("source")
    # By name and not by key: the names are what to_jsonb sees.
    given = {column.name: column for column in rows.c}
    # The star makes it the row, also where a column is called source.
    arg: ColumnElement[Any] = func.to_jsonb(literal_column("source.*"), type_=JSONB)
    for name in sorted({"id", "delay", "priority", *more} & set(given)):
        arg = arg.op("-", return_type=JSONB())(literal(name, Text))
    start = _start(
        given["delay"] * SECOND
        if "delay" in given
        else cast(parameter("delay", Interval), Interval),
        cast(_run_at_parameter(), DateTime(timezone=True)),
    )
    expires_at = cast(_expires_at_parameter(), DateTime(timezone=True))
    expires_in = cast(_optional("expires_in", Interval), Interval)
    return select(
        cast(given["id"], Text) if "id" in given else _uuid7(),
        cast(parameter("queue", Text), Text),
        cast(parameter("type", Text), Text),
        func.convert_to(cast(arg, Text), "UTF8"),
        cast(given["priority"], SmallInteger)
        if "priority" in given
        else cast(parameter("priority", SmallInteger), SmallInteger),
        cast(parameter("headers", JSONB(none_as_null=True)), JSONB),
        start,
        _expiry(start, expires_in, expires_at),
        cast(_optional("batch_id", Text), Text),
        *(given[name] for name in more),
    ).select_from(rows)


def _start(delay: ColumnElement[Any], run_at: ColumnElement[Any]) -> ColumnElement[Any]:
    """When a new job is due: at run_at, or delay after the caller's transaction began."""
    return func.coalesce(run_at, func.now() + delay, func.now())


def _expiry(
    start: ColumnElement[Any],
    expires_in: ColumnElement[Any],
    expires_at: ColumnElement[Any] | None = None,
) -> ColumnElement[Any]:
    """When a new job expires: at expires_at, or expires_in after it is due, or never."""
    given = _expires_at_parameter() if expires_at is None else expires_at
    return func.coalesce(given, start + expires_in)


def _expires_at_parameter() -> ColumnElement[Any]:
    return _optional("expires_at", DateTime(timezone=True))


def _optional(name: str, type_: Any) -> ColumnElement[Any]:
    """A parameter that is null for who does not give it."""
    return bindparam(f"{PARAMETER_PREFIX}{name}", None, type_=type_)


def _run_at_parameter() -> ColumnElement[Any]:
    return parameter("run_at", DateTime(timezone=True))


def _uuid7() -> ColumnElement[str]:
    """UUIDv7 text that grows from row to row; ``uuidv7()`` came only with PostgreSQL 18.

    The time is the statement's; below it the 12 bits of rand_a count the rows, and what overflows
    them adds to the milliseconds.
    """
    now = func.floor(extract("epoch", func.statement_timestamp()) * 1000)
    counted = cast(now, BigInteger) * 4096 + func.row_number().over()
    time = func.lpad(func.to_hex(counted), 15, "0")
    rest = func.substr(cast(func.gen_random_uuid(), Text), 19)  # the dash, the variant, 62 bits
    parts = (func.substr(time, 1, 8), "-", func.substr(time, 9, 4), "-7", func.substr(time, 13, 3))
    return func.concat(*parts, rest)
