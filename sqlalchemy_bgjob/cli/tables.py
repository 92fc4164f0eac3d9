"""``migrate`` and ``grants``: the tables, and who may do what with them."""

from pathlib import Path

import click

from .._process.exits import OK, USAGE, CommandError
from .options import connection_options, schema_options, source_of


@click.command()
@connection_options
@schema_options
@click.option("--sql", is_flag=True, help="Print the SQL for psql; needs no database.")
@click.option(
    "--from",
    "from_version",
    type=click.IntRange(min=0),
    default=0,
    help="With --sql: the version that is there; 0 is none.",
)
@click.option(
    "--to",
    "to_version",
    type=click.IntRange(min=0),
    help="With --sql: the version to reach, up or down. By default the latest.",
)
@click.option(
    "--records", is_flag=True, help="Also make the tables that BGJob(records=True) needs."
)
@click.pass_context
def migrate(
    ctx: click.Context,
    /,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    sql: bool,
    from_version: int,
    to_version: int | None,
    records: bool,
) -> int:
    """Bring the queue's tables to this release's version, without Alembic.

    It creates a --schema that is missing. It may run any number of times, also at once from several
    places. Workers and producers may go on: no table is locked for longer than a second. Run it
    before an Alembic revision of many rows, which then finds everything done.
    """
    from .. import schema as tables

    if sql:
        latest = tables.LATEST if to_version is None else to_version
        try:
            script = tables.migration_sql(
                from_version=from_version,
                to_version=latest,
                schema=schema,
                table_prefix=table_prefix,
                records=records,
            )
        except ValueError as error:
            raise CommandError(USAGE, str(error)) from None
        click.echo(script, nl=False)
        return OK
    if from_version or to_version is not None:
        raise CommandError(USAGE, "--from and --to go with --sql; a database tells its version")
    from .._process.engines import run_connected

    source = source_of(ctx, database_url, engine, app_dir)
    before = run_connected(
        *source,
        lambda connection: tables.migrate_online(
            connection, schema=schema, table_prefix=table_prefix, records=records
        ),
    )
    where = f"{table_prefix}* in schema {schema}" if schema else f"{table_prefix}*"
    if before == 0:
        click.echo(f"created the tables {where}, version {tables.LATEST}")
    elif before < tables.LATEST:
        click.echo(f"migrated the tables {where} from version {before} to {tables.LATEST}")
    else:
        click.echo(f"the tables {where} are of version {before}: nothing to do")
    if records:
        click.echo(f"the tables of records are of version {tables.records.LATEST}")
    return OK


@click.command()
@click.option("--enqueue", multiple=True, metavar="ROLE", help="A role that enqueues.")
@click.option("--worker", multiple=True, metavar="ROLE", help="A role that workers connect as.")
@click.option(
    "--operator", multiple=True, metavar="ROLE", help="A role that cancels, redrives and prunes."
)
@click.option("--dashboard", multiple=True, metavar="ROLE", help="A role that reads all but args.")
@click.option("--records", is_flag=True, help="Also on the tables of BGJob(records=True).")
@schema_options
def grants(schema: str | None, table_prefix: str, records: bool, **roles: tuple[str, ...]) -> int:
    """Print the least privileges for the roles of an application, as SQL for psql.

    Let a role that nobody logs in as own the tables.
    """
    from ..schema._grants import TASKS
    from ..schema._grants import grants as statements

    named = [(task, role) for task in TASKS for role in roles[task]]
    if not named:
        options = ", ".join(f"--{task}" for task in TASKS)
        raise CommandError(USAGE, f"name a role with at least one of {options}")
    made = statements(named, schema=schema, table_prefix=table_prefix, records=records)
    click.echo(made, nl=False)
    return OK
