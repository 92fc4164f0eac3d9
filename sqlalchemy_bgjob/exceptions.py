"""What the library raises: one root, few leaves, each with its data as attributes.

``Exception.__init__`` gets the data and ``__str__`` builds the sentence, so errors survive
pickling. No sentence holds a value of a job's arg: messages end up in logs.
"""

import shlex
from typing import Any

from .settings import DEFAULT_PREFIX


class BGJobError(Exception):
    """The root of all errors of this library: catch it to catch them all."""


class InvalidArg(BGJobError, ValueError):
    """An arg or header can't be stored, or what is stored is not what the handler takes.

    Attributes:
        path: Where in the value, such as ``$.items[3].price``.
        reason: What is wrong there. It has no value of the arg.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path: str = path
        self.reason: str = reason

    def __str__(self) -> str:
        return f"invalid arg at {self.path}: {self.reason}"


class InvalidResult(BGJobError, ValueError):
    """What a handler gave to ``Complete(result=...)`` can't be kept in the job's record.

    The attempt has failed. The attributes are those of :class:`InvalidArg`.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path: str = path
        self.reason: str = reason

    def __str__(self) -> str:
        return f"invalid result at {self.path}: {self.reason}"


class SchemaOutOfDate(BGJobError):
    """The tables are missing, or of a version that this release's workers can't run on.

    Attributes:
        found: The version that is there; 0 or None for none.
        needed: The version that this release needs.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
    """

    def __init__(
        self, found: int | None, needed: int, schema: str | None, table_prefix: str
    ) -> None:
        super().__init__(found, needed, schema, table_prefix)
        self.found: int | None = found
        self.needed: int = needed
        self.schema: str | None = schema
        self.table_prefix: str = table_prefix

    def __str__(self) -> str:
        table = f"{self.table_prefix}job"
        where = f"table {table!r}" + (f" in schema {self.schema!r}" if self.schema else "")
        if self.found is not None and self.found > self.needed:
            return (
                f"{where} is of version {self.found}, and the workers of this release need "
                f"{self.needed}; install a newer release of sqlalchemy-bgjob"
            )
        problem = f"is of version {self.found}" if self.found else "does not exist"
        options = _options(self.schema, self.table_prefix)
        return (
            f"{where} {problem}, and the workers of this release need version {self.needed}; run "
            f"`sqlalchemy-bgjob migrate{options}`, or with Alembic `alembic revision "
            f"--autogenerate` and `alembic upgrade head`"
        )


def _options(schema: str | None, table_prefix: str) -> str:
    """The options of the command line that name these tables."""
    given = (("--schema", schema, None), ("--table-prefix", table_prefix, DEFAULT_PREFIX))
    return "".join(
        f" {flag} {shlex.quote(value)}"
        for flag, value, default in given
        if value != default and value is not None
    )


class SchemaUnknown(SchemaOutOfDate):
    """There is a table of the job table's name, but its comment names no version of ours."""

    def __init__(
        self,
        table: str,
        comment: str | None,
        expected: str,
        needed: int,
        schema: str | None,
        table_prefix: str,
    ) -> None:
        super().__init__(None, needed, schema, table_prefix)
        self.args: tuple[Any, ...] = (table, comment, expected, needed, schema, table_prefix)
        self.table: str = table
        self.comment: str | None = comment
        self.expected: str = expected

    def __str__(self) -> str:
        says = "has no comment" if self.comment is None else f"has the comment {self.comment!r}"
        return (
            f"table {self.table} {says}, so its version is not known; if it is another program's, "
            f"choose another table_prefix= or schema=; if it is the queue's, give it its comment "
            f"back, for example: COMMENT ON TABLE {self.table} IS '{self.expected}'"
        )


class ForeignTable(SchemaOutOfDate):
    """Another program has a table with one of the queue's names."""

    def __init__(
        self, table: str, owner: str | None, schema: str | None, table_prefix: str
    ) -> None:
        super().__init__(None, 0, schema, table_prefix)
        self.args: tuple[Any, ...] = (table, owner, schema, table_prefix)
        self.table: str = table
        self.owner: str | None = owner

    def __str__(self) -> str:
        owner = self.owner or "another program's"
        return (
            f"{self.table} is {owner}, by its columns, and not this "
            f"queue's; leave it as it is, and give the queue tables of its own by another schema= "
            f"or table_prefix= of BGJob(), and --schema or --table-prefix on the command line"
        )


class NotAPlainTable(SchemaOutOfDate):
    """One of the queue's tables is partitioned, or is no table at all."""

    def __init__(self, table: str, kind: str, schema: str | None, table_prefix: str) -> None:
        super().__init__(None, 0, schema, table_prefix)
        self.args: tuple[Any, ...] = (table, kind, schema, table_prefix)
        self.table: str = table
        self.kind: str = kind

    def __str__(self) -> str:
        options = _options(self.schema, self.table_prefix)
        return (
            f"{self.table} is {self.kind}, and the queue needs a plain table, whose rows it "
            f"fetches by their address; drop the queue's tables if they are empty, or rename them, "
            f"run `sqlalchemy-bgjob migrate{options}`, and copy their rows"
        )


class RecordsOutOfDate(SchemaOutOfDate):
    """``BGJob(records=True)`` needs tables of records, which are missing or of another version."""

    def __str__(self) -> str:
        names = f"{self.schema + '.' if self.schema else ''}{self.table_prefix}"
        options = _options(self.schema, self.table_prefix)
        if self.found:
            return (
                f"table {names}record is of version {self.found}, and this release of "
                f"sqlalchemy-bgjob needs {self.needed}; install the release that made it, or a "
                f"later one"
            )
        return (
            f"BGJob(records=True) needs the tables {names}record, {names}minute and {names}audit, "
            f"and not all of them are there; run `sqlalchemy-bgjob migrate --records{options}`, or "
            f"add them to your Alembic history with `alembic revision --autogenerate`"
        )


class JobAlreadyExists(BGJobError):
    """A job has one of these ids, or unique keys. Nothing was enqueued.

    The caller's transaction stays usable.

    Attributes:
        ids: The ids that live jobs have; with *keys*, the ids of the jobs that have these. Empty
            where only the database knows them, as after ``enqueue_from``.
        keys: The unique keys that jobs have; empty if it is about ids.
    """

    def __init__(self, ids: tuple[str, ...], keys: tuple[str, ...] = ()) -> None:
        super().__init__(ids, keys)
        self.ids: tuple[str, ...] = ids
        self.keys: tuple[str, ...] = keys

    def __str__(self) -> str:
        if self.keys:
            more = f" and {len(self.keys) - 3} more" if len(self.keys) > 3 else ""
            return (
                f"a job has the unique key {', '.join(map(repr, self.keys[:3]))}{more}; nothing "
                f"was enqueued (on_conflict='skip' of Unique leaves the existing job and goes on)"
            )
        if not self.ids:
            return (
                "a live job has one of the ids or unique keys, or one is given twice; nothing was "
                "enqueued (on_conflict='ignore', or on_conflict='skip' of Unique, leaves such rows "
                "out)"
            )
        shown = ", ".join(repr(id) for id in self.ids[:3])
        more = f" and {len(self.ids) - 3} more" if len(self.ids) > 3 else ""
        return (
            f"a live job has the id {shown}{more}; nothing was enqueued "
            f"(on_conflict='ignore' leaves the existing job and goes on)"
        )


class UnknownType(BGJobError):
    """No worker knew a job's type for so many *seconds*. The dead job's ``last_error`` says so."""

    def __init__(self, type: str, seconds: float) -> None:
        super().__init__(type, seconds)
        self.type: str = type
        self.seconds: float = seconds

    def __str__(self) -> str:
        return (
            f"no worker knew the job type {self.type!r} for {self.seconds:g} s; deploy a worker "
            f"that has a handler of it, and redrive the job"
        )


class WorkerLost(BGJobError):
    """The worker that held a job was lost. The job's ``last_error`` says so.

    The attributes are set if the job is dead of it, and None while attempts are left.

    Attributes:
        crashes: How many attempts were lost with a worker.
        attempts: How many attempts there were.
        max_attempts: How many are allowed.
    """

    def __init__(
        self,
        crashes: int | None = None,
        attempts: int | None = None,
        max_attempts: int | None = None,
    ) -> None:
        super().__init__(crashes, attempts, max_attempts)
        self.crashes: int | None = crashes
        self.attempts: int | None = attempts
        self.max_attempts: int | None = max_attempts

    def __str__(self) -> str:
        if self.crashes is None:
            return (
                "the worker that ran the job was lost; find out what ended it, as the job itself "
                "may be the cause"
            )
        return (
            f"{self.crashes} of {self.attempts} attempts ended with the worker that ran them, and "
            f"max_attempts is {self.max_attempts}; find out what ended these workers before you "
            f"redrive the job, which may be the cause"
        )


class WorkerRefused(BGJobError):
    """This worker can't run on this database, however long it waits.

    Attributes:
        problem: What is wrong.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem: str = problem
        self.remedy: str = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class WorkerStuck(BGJobError):
    """Too many of a worker's slots are taken by handlers that do not end, so the worker has ended.

    A supervisor starts another process in its place.

    Attributes:
        stuck: How many slots they take.
        slots: How many slots the worker has.
    """

    def __init__(self, stuck: int, slots: int) -> None:
        super().__init__(stuck, slots)
        self.stuck: int = stuck
        self.slots: int = slots

    def __str__(self) -> str:
        return (
            f"{self.stuck} of {self.slots} slots are taken by handlers that do not end although "
            f"they were told to, so this worker ends; a function must look at ctx.cancelled, and a "
            f"coroutine must not swallow CancelledError"
        )


class NoContextManager(BGJobError):
    """The callable given as ``around=`` returned no context manager that the job can be run in.

    Observers are told of it by ``worker_error``.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem: str = problem

    def __str__(self) -> str:
        return (
            f"around= {self.problem}; the queue's jobs wait, with no attempt spent, until it "
            f"returns a context manager, as app.app_context does"
        )
