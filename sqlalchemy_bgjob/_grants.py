"""The least privileges for each role that touches the queue's tables, as SQL to read and run.

A role that enqueues reads of jobs only the few columns that its own statements return, and one that
only looks reads no arg. Headers and errors it does read: what is secret belongs into neither.
"""

from collections.abc import Iterable
from typing import Final, Literal, get_args

from ._frozen import STEPS, qualified, quoted, table_of
from .schema import LATEST

Task = Literal["enqueue", "worker", "operator", "dashboard"]
"""What a role does.

* ``enqueue``: all ways to enqueue, and nothing else;
* ``worker``: claims, runs and settles; its handlers may enqueue;
* ``operator``: cancel, redrive and prune, with a look at everything;
* ``dashboard``: looks at everything but args.
"""
TASKS: Final[tuple[Task, ...]] = get_args(Task)

# What an INSERT returns, and what a session reads back of a new row.
_ENQUEUE_READS: Final = (
    "id",
    "queue",
    "priority",
    "attempt",
    "crashes",
    "lease",
    "next_run_at",
    "created_at",
    "updated_at",
)


def grants(roles: Iterable[tuple[Task, str]], *, schema: str | None, table_prefix: str) -> str:
    """The GRANT statements for these roles, one a line; they belong to nobody else.

    Args:
        roles: What each role does, and its name.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
    """
    lines: list[str] = []
    for task, role in roles:
        lines.append(f"-- {task}")
        if schema is not None:
            lines.append(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {quoted(role)};")
        lines += [
            f"GRANT {privileges} ON {qualified(schema, table_prefix + kind)} TO {quoted(role)};"
            for kind, privileges in _privileges(task, schema, table_prefix)
        ]
    return "\n".join(lines) + "\n"


def _privileges(task: Task, schema: str | None, prefix: str) -> list[tuple[str, str]]:
    def without_arg(kind: str) -> str:
        table = table_of(STEPS[LATEST].tables(schema, prefix), kind, schema, prefix)
        return ", ".join(quoted(column.name) for column in table.c if column.name != "arg")

    match task:
        case "enqueue":
            return [
                ("job", f"INSERT, SELECT ({', '.join(map(quoted, _ENQUEUE_READS))})"),
                ("worker", f"SELECT ({quoted('id')}, {quoted('waits_for')})"),
            ]
        case "worker":
            return [
                ("job", "SELECT, INSERT, UPDATE, DELETE"),
                ("dead_job", f"INSERT, SELECT ({quoted('job_id')})"),
                ("worker", "SELECT, INSERT, UPDATE, DELETE"),
            ]
        case "operator":
            return [
                ("job", "SELECT, INSERT, DELETE"),
                # A redrive locks what it brings back, and an arg may have to be mended before.
                ("dead_job", "SELECT, UPDATE, DELETE"),
                ("worker", "SELECT"),
            ]
        case "dashboard":
            return [
                ("job", f"SELECT ({without_arg('job')})"),
                ("dead_job", f"SELECT ({without_arg('dead_job')})"),
                ("worker", "SELECT"),
            ]
