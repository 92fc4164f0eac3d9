"""What the statements are made of: parameters, row locks, notifications.

Rows are locked inside an ``ARRAY(SELECT ctid ... SKIP LOCKED)``, which is evaluated once: the LIMIT
holds whichever plan is chosen. The rows are then fetched by address, so no statistics can turn the
join into a scan of the table. A locked row cannot move.
"""

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from functools import cache
from hashlib import sha1
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    Float,
    FromClause,
    Integer,
    Select,
    Subquery,
    Table,
    TableValuedAlias,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    extract,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from .._drafts.validation import EARLIEST, LATEST
from ..models import Models
from ..models._ddl import LOWEST_PRIORITY
from ..schema._names import qualified, translated

_CTID: ColumnElement[Any] = literal_column("ctid")
SECOND: ColumnElement[Any] = literal_column("interval '1 second'")

FIRST_MOMENT: ColumnElement[Any] = literal_column(f"timestamptz '{EARLIEST.isoformat()}'")
LAST_MOMENT: ColumnElement[Any] = literal_column(f"timestamptz '{LATEST.isoformat()}'")

ONLY: Final = "ONLY"
"""The hint that leaves out tables which inherit from a table, such as an archive: an address is
unique within one table, and an archived row is no job. Every statement gives it for every table of
the queue; see tests/worker/test_inheritance.py."""

ACTIVITY = table(
    "pg_stat_activity",
    column("pid", Integer),
    column("backend_start", DateTime(timezone=True)),
    column("application_name", Text),
    column("usename", Text),
    column("datname", Text),
    column("state", Text),
    schema="pg_catalog",
)
"""One row for each server session; what belongs to other roles may be hidden."""

PARAMETER_PREFIX = "given_"

WOKEN: Final = 2
"""How many waiting workers a job wakes: two, in case one of them is about to end."""


class Wakeup(Enum):
    """What a worker is woken for."""

    NEW = "new"
    RETURNED = "returned"
    """Jobs were given back; they stand near the head of the queue."""
    CANCEL = "cancel"
    """Some of the jobs that it holds are to be cancelled; which, its rows say."""


def moment(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A time that somebody may have written by SQL; null if it is none that Python has."""
    return case((column.between(FIRST_MOMENT, LAST_MOMENT), column))


def parameter(name: str, type_: Any) -> BindParameter[Any]:
    """A named parameter; its value is given by :func:`parameters`."""
    # Prefixed: SQLAlchemy keeps the columns' own names for the values of an INSERT or UPDATE.
    return bindparam(f"{PARAMETER_PREFIX}{name}", type_=type_)


def parameters(**values: Any) -> dict[str, Any]:
    """Values for the parameters that the statements' docstrings name."""
    return {f"{PARAMETER_PREFIX}{name}": value for name, value in values.items()}


def channel_name(schema: str | None, table_prefix: str) -> str:
    """The name on which workers LISTEN: one for each set of tables, at most 63 bytes."""
    full_name = f"{schema or ''}.{table_prefix}"
    return f"bgjob_{sha1(full_name.encode(), usedforsecurity=False).hexdigest()[:12]}"


@cache
def wake_up(schema: str | None, table_prefix: str) -> Executable:
    """Wake workers that wait for a queue, at this transaction's COMMIT. Parameter: queue."""
    worker = table(
        f"{table_prefix}worker",
        column("id", BigInteger),
        column("waits_for", JSONB),
        schema=schema,
    )
    channel = channel_name(schema, table_prefix)
    return select(woken(worker, channel, parameter("queue", Text)).scalar_subquery())


def woken(
    worker: FromClause,
    channel: str,
    queue: ColumnElement[Any],
    *,
    of: Wakeup = Wakeup.NEW,
    most: int = WOKEN,
    but: ColumnElement[Any] | None = None,
) -> Select[Any]:
    """Notify some workers that wait for a queue, at this transaction's COMMIT.

    A worker hears on a channel of its own (see :func:`own_channel`). It is told how many further
    workers wait and were not woken: if it can't take what there is, it wakes one of them.

    Where no worker waits, nothing is sent: a COMMIT that notifies takes a lock for which notifying
    COMMITs in all databases of the server wait, and busy workers find new jobs without it.

    Args:
        worker: The table of workers.
        channel: See :func:`channel_name`.
        queue: The queue; may be a column of a row that this is joined with.
        of: What there is.
        most: How many workers are woken.
        but: The id of a worker that is not.
    """
    waits = cast(worker.c.waits_for, JSONB).has_key(queue)
    # The same ones throughout a transaction: equal notifications are sent once.
    order = func.hashint8extended(worker.c.id, func.txid_current())
    number: ColumnElement[int] = literal_column(str(most))
    others = func.greatest(func.count().over() - number, literal_column("0")).label("others")
    chosen = (
        select(worker.c.id, others)
        .with_hint(worker, ONLY)
        .where(waits if but is None else and_(waits, worker.c.id != but))
        .order_by(order)
        .limit(number)
        .correlate_except(worker)
        .lateral("chosen")
    )
    own = literal(own_channel(channel, ""), Text) + cast(chosen.c.id, Text)
    reason: ColumnElement[str] = literal_column(f"'{of.value}'")
    payload = func.concat_ws(literal_column("' '"), reason, chosen.c.others, queue)
    notified = func.count(func.pg_notify(own, payload)).label("count")
    return select(notified).select_from(chosen).correlate_except(chosen)


def woken_by(tables: "Tables", inserted: FromClause) -> ColumnElement[Any]:
    """Notify for inserted jobs, of each queue once; how many workers it was.

    Args:
        tables: Whose workers.
        inserted: The jobs, with a column queue.
    """
    queues = select(inserted.c.queue).distinct().subquery("queues")
    notified = woken(tables.worker, tables.channel, queues.c.queue).lateral("notified")
    sent = select(func.sum(notified.c.count)).select_from(queues.join(notified, true()))
    return sent.scalar_subquery()


def own_channel(channel: str, worker_id: int | str) -> str:
    """The name on which one worker hears of what it is to take."""
    return f"{channel}_{worker_id}"


def before(worker: FromClause, me: ColumnElement[Any], *columns: ColumnElement[Any]) -> Subquery:
    """A worker's own row as it was before an UPDATE of it: id, and these columns."""
    return (
        select(worker.c.id, *columns)
        .with_hint(worker, ONLY)
        .where(worker.c.id == me)
        .subquery("before")
    )


def array_parameter(name: str, item: Any) -> ColumnElement[Any]:
    """A parameter that takes a list."""
    # The cast types an empty list, and spares drivers that send text from guessing.
    return cast(parameter(name, ARRAY(item)), ARRAY(item))


def unnest(alias: str = "given", /, **columns: Any) -> TableValuedAlias:
    """Rows made of parallel array parameters: ``unnest(ids, leases, ...) AS alias``."""
    arrays = [array_parameter(name, item) for name, item in columns.items()]
    return (
        func.unnest(*arrays)
        .table_valued(*(column(name, item) for name, item in columns.items()))
        .render_derived(name=alias)
    )


def at(locked: Select[Any]) -> ColumnElement[bool]:
    """Rows at the addresses that a locking SELECT of one ctid column returns."""
    return any_(func.array(locked.scalar_subquery())) == _CTID


def each_held(
    job: Table,
    given: TableValuedAlias,
    value: ColumnElement[Any],
    holder: ColumnElement[int],
    complete: Callable[[Any, Select[Any]], Select[Any]],
    queue: ColumnElement[str],
) -> Select[Any]:
    """A value of each given job that its holder still holds.

    A LATERAL that can't be pulled up: one probe of the primary key for each job, whatever the
    statistics say. A plain join was planned as a nested loop over all pairs, see
    tests/database/test_plans.py.

    Args:
        job: The table.
        given: Ids and leases.
        value: Of the alias ``held``.
        holder: Who holds it.
        complete: Gets that alias and the SELECT of one job, and adds a lock or a limit.
        queue: The queue of each given job.
    """
    held = job.alias("held")
    one = (
        select(value.label("value"))
        .select_from(held)
        .with_hint(held, ONLY)
        .where(
            held.c.queue == queue,
            held.c.id == given.c.ids,
            held.c.lease == given.c.leases,
            held.c.claimed_by == holder,
        )
    )
    found = complete(held, one).lateral("found")
    return select(found.c.value).select_from(given.join(found, true()))


def in_order_of_locks(job: FromClause) -> tuple[ColumnElement[Any], ...]:
    """The order in which statements lock many jobs: those without a unique key by id, then by key.

    Enqueuing many takes keys and ids in this order too, so no two wait for each other in a circle.
    """
    return job.c.unique_key.collate("C").nulls_first(), job.c.id.collate("C")


def in_order_of_claims(job: FromClause) -> ColumnElement[bool]:
    """True of every row. It lets a statement walk the claim's index, and no other one.

    Each statement names its queue, so that a distributed table finds its shard. By that alone, and
    stale statistics, a search by id could be planned as a walk through all jobs of the queue.
    """
    return job.c.priority >= literal_column(LOWEST_PRIORITY)


CLOCK: Final = (
    func.statement_timestamp()
    .table_valued(column("now", DateTime(timezone=True)), joins_implicitly=True)
    .render_derived(name="clock")
)
"""The server's clock as a table of one row, for an UPDATE: what it computes from a row's columns
may hold no function that is not immutable, where the table is distributed."""


def later(delay: ColumnElement[float]) -> ColumnElement[datetime]:
    """A time so many seconds after :data:`CLOCK`."""
    epoch = cast(extract("epoch", CLOCK.c.now - func.to_timestamp(literal_column("0"))), Float(53))
    return func.to_timestamp(epoch + delay)


def seconds(interval: ColumnElement[Any]) -> ColumnElement[float]:
    """An interval as a number."""
    return cast(extract("epoch", interval), Float(53))


def transaction_id() -> ColumnElement[str]:
    """This transaction's id, by which a COMMIT whose answer was lost can be looked up."""
    return cast(func.pg_current_xact_id(), Text).label("xid")


@cache
def transaction_began_at() -> Executable:
    """When this transaction began: no two of one session have begun at the same time."""
    # As a number: its text depends on DateStyle and TimeZone, which a handler may set, and psycopg
    # can't read each style.
    return select(extract("epoch", func.now()))


@cache
def has_written() -> Executable:
    """Whether this transaction has written anything, or locked a row."""
    return select(func.pg_current_xact_id_if_assigned().is_not(None))


@cache
def is_read_only() -> Executable:
    """Whether each transaction of this session is read-only unless it says otherwise."""
    default = cast(func.current_setting("default_transaction_read_only"), Boolean)
    return select(or_(default, func.pg_is_in_recovery()))


class Tables:
    """One set of tables, and the channels of its workers."""

    def __init__(self, models: Models) -> None:
        self.job: Final[Table] = models.job
        self.dead: Final[Table] = models.dead_job
        self.worker: Final[Table] = models.worker
        self.control: Final[Table] = models.control
        self.seat: Final[Table] = models.seat
        self.unique_period: Final[Table] = models.unique_period
        self.schedule: Final[Table] = models.schedule
        self.batch: Final[Table] = models.batch
        self.recording: Final = models.recording
        self.schema: Final = models.schema
        self.prefix: Final = models.table_prefix
        self.channel: Final = channel_name(self.schema, self.prefix)
        self.channel_of_given_back: Final = f"{self.channel}_given_back"

    def table_names(self, connection: Connection) -> list[str]:
        """The tables' names, quoted, as PostgreSQL's functions take them: that of jobs is first."""
        return [self.name_of(table, connection) for table in (self.job, self.dead, self.worker)]

    def name_of(self, table: Table, connection: Connection) -> str:
        """The name of one of them, in the same way."""
        return qualified(translated(connection, self.schema), table.name)
