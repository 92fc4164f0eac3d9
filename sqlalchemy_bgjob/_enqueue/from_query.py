"""enqueue_from: jobs from the user's own query, whose rows never leave the database."""

from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack, overload

from sqlalchemy import Select, Text, TextClause, cast, literal
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeEngine

from .._db.errors import sqlstate
from .._db.targets import Savepoint, SyncTarget, Unit, run_in
from .._drafts import codec
from .._drafts.batch import refuse_other_tables, refuse_other_transaction
from .._drafts.options import Common, QueryOptions
from .._drafts.unique import Unique
from .._handlers.registry import JobType
from .._misuse import refuse_unknown
from .._sql import statements_of
from .._sql.unique import KEY
from .._sql.words import parameters
from ..exceptions import InvalidArg, JobAlreadyExists
from ..models import Models
from .checks import on_conflict_of, registered

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

    AnySelect = Select[*tuple[Any, ...]]
    """Of any columns, which SQLAlchemy 2.1 counts."""
else:
    AnySelect = Select


@overload
def enqueue_from(
    target: SyncTarget,
    handler: JobType[Any],
    select: AnySelect,
    **options: Unpack[QueryOptions],
) -> int: ...
@overload
def enqueue_from(
    target: "AsyncTarget",
    handler: JobType[Any],
    select: AnySelect,
    **options: Unpack[QueryOptions],
) -> Coroutine[Any, Any, int]: ...
def enqueue_from(
    target: Any,
    handler: JobType[Any],
    select: AnySelect,
    **options: Unpack[QueryOptions],
) -> Any:
    """Add a job for each row of a query, by one statement inside the database. The caller commits.

    ``enqueue_from(session, send_receipt, select(Order.id.label("order_id")))``

    The labels ``id``, ``delay`` (seconds) and ``priority`` are the job's own. All other columns
    become the fields of the arg, a JSON object as PostgreSQL's ``to_jsonb`` makes it.

    Args:
        target: As for :func:`enqueue`.
        handler: A registered handler whose arg is an object of these fields.
        select: A query over your own tables; every column has a name or a label.
        on_conflict: ``"raise"``, the default, adds no job at all if a live job has one of the ids,
            or if an id comes twice; ``"ignore"`` leaves these rows out.
        unique: An expression of the query that gives each row's unique key, or a Unique of one:
            ``unique=Unique("order:" + cast(Order.id, Text), "queued")``. Of rows where it is null
            the jobs have no key. Not with a label ``id``.
        **options: All others but ``id`` as for :func:`enqueue`, for values that no label gives.

    Returns:
        How many jobs are new.

    Raises:
        JobAlreadyExists: As above, or as the unique key says; the transaction stays usable. The
            error names no ids.
        ValueError: The labels are not the fields of the handler's arg, or a label and an argument
            say the same. Raised before any SQL.
        TypeError: *select* is no ``select()``, or *unique* no expression of it.
    """
    refuse_unknown("enqueue_from", options, QueryOptions)
    on_conflict = on_conflict_of(options)
    models = registered(handler).models
    labels = _check_labels(handler, select)
    refuse_other_tables(options, models)
    batch = options.get("batch")
    options = handler.additions.with_headers(handler.type, handler.queue, options, None)
    values = Common.of(handler.type, handler.queue, options).with_headers(options)._asdict()
    for label, argument in (("delay", values["delay"]), ("priority", values["priority"] or None)):
        if label in labels:
            if argument is not None:
                raise ValueError(f"{label} is given twice: as an argument and as a label")
            values.pop(label)
    if "delay" in labels and values["run_at"] is not None:
        raise ValueError("give either run_at= or a label delay, not both")

    unique = _unique_of(options, labels)
    if unique is not None:
        given = parameters(**values, period=unique.seconds)

        def insert_unique(unit: Unit) -> int:
            return _insert_unique(unit, models, select, unique, given)

        return run_in(target, models, insert_unique, call="enqueue_from")

    def insert(unit: Unit) -> int:
        refuse_other_transaction(batch, unit.connection.get_transaction())
        ignore = on_conflict == "ignore" or "id" not in labels
        statement = statements_of(models).enqueue.from_query(
            select, notify=unit.can_notify, ignore_duplicates=ignore
        )
        if ignore:
            return len(unit.execute(statement, parameters(**values)).all())
        with Savepoint(unit) as savepoint:
            try:
                return len(unit.execute(statement, parameters(**values)).all())
            except IntegrityError as error:
                savepoint.rollback()
                if sqlstate(error) == "23505":
                    raise JobAlreadyExists(()) from None
                raise

    return run_in(target, models, insert, call="enqueue_from")


def _unique_of(options: QueryOptions, labels: set[str]) -> Unique | None:
    given: Any = options.get("unique")
    if given is None:
        return None
    unique = given if isinstance(given, Unique) else Unique(given)
    if not hasattr(unique.key, "__clause_element__") and not isinstance(unique.key, ClauseElement):
        raise TypeError(
            f"unique= of enqueue_from is an expression of the query, and {unique.key!r} is none, "
            f"as all rows with one key would be one job; write for example "
            f"unique=cast(Order.id, Text)"
        )
    if "id" in labels:
        raise ValueError("give either a label id or unique=, not both")
    return unique


def _insert_unique(
    unit: Unit, models: Models, select: Select[Any], unique: Unique, given: dict[str, Any]
) -> int:
    key: Any = cast(unique.key, Text)
    if unique.prefix:
        key = literal(unique.prefix, Text).concat(key)
    statement = statements_of(models).unique.from_query(
        select.add_columns(key.label(KEY)),
        unique.scope,
        unique.on_conflict,
        notify=unit.can_notify,
    )
    with Savepoint(unit) as savepoint:
        row: Any = unit.execute(statement, given).one()
        if unique.on_conflict == "raise" and row.new < row.given:
            savepoint.rollback()
            raise JobAlreadyExists(())
    return int(row.new)


def _check_labels(handler: JobType[Any], select: Select[Any]) -> set[str]:
    if not isinstance(select, Select):
        raise TypeError(
            f"enqueue_from takes a select(), not {type(select).__name__}; write for example "
            f"select(Order.id.label('order_id')).where(...), or around a text that has columns "
            f"select(text(...).columns(column('order_id')).subquery())"
        )
    expressions = [described["expr"] for described in select.column_descriptions]
    nameless = [expression for expression in expressions if isinstance(expression, TextClause)]
    if nameless:
        raise ValueError(
            f"text({nameless[0].text!r}) in the select has no name that its value could have in "
            f"the arg; write column('name') for a plain column, or "
            f"literal_column(...).label('name') for an expression"
        )
    # The names that a subquery gives: func.lower(x), for one, gets none that it keeps.
    try:
        columns = list(select.subquery().c)
    except InvalidRequestError:  # the same label twice
        columns = []
    names = [str(column.name) for column in columns]
    labels = set(names)
    if not names or len(labels) < len(names) or any(name.startswith("%(") for name in names):
        raise ValueError("every column of the select needs a name of its own: use .label()")
    for column in columns:
        if _python_type(column.type) in (bytes, timedelta):
            raise ValueError(
                f"to_jsonb does not write {column.name!r}, of type {column.type!r}, as a handler "
                f"reads it; make it a number or text: extract('epoch', ...), func.encode(...)"
            )
    arg_labels = labels - {"id", "delay", "priority"}
    if not handler.takes_arg:
        if arg_labels:
            raise ValueError(
                f"the handler of {handler.type!r} takes no arg, but the select has the columns "
                f"{', '.join(sorted(arg_labels))}"
            )
        return labels
    fields = codec.fields(handler.annotation)
    if fields is None:
        _check_takes_object(handler)
    else:
        missing, unknown = fields.required - arg_labels, arg_labels - fields.known
        if missing or unknown:
            problem = "; ".join(
                f"{what} {', '.join(sorted(which))}"
                for what, which in (("missing:", missing), ("not a field:", unknown))
                if which
            )
            raise ValueError(
                f"the select's labels are not the fields of the arg of {handler.type!r} ({problem})"
            )
    return labels


def _check_takes_object(handler: JobType[Any]) -> None:
    try:
        handler.decode(b"{}", None)
    except InvalidArg as error:
        # Any other error may go away with the fields that a row brings.
        if error.path == "$" and "got `object`" in error.reason:
            raise ValueError(
                f"the handler of {handler.type!r} takes no object of fields, which is what the "
                f"rows of a select become ({error.reason})"
            ) from None


def _python_type(type_: TypeEngine[Any]) -> type | None:
    try:
        return type_.python_type
    except NotImplementedError:
        return None
