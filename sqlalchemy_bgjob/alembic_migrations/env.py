"""The Alembic environment for projects that run these revisions and no others.

    alembic -c my.ini upgrade head

with, in ``my.ini``::

    [alembic]
    script_location = sqlalchemy_bgjob:alembic_migrations
    sqlalchemy.url = postgresql+psycopg://...       # optional, see below
    bgjob_schema = app                              # optional, as is bgjob_table_prefix

Without ``sqlalchemy.url`` the database is that of BGJOB_DATABASE_URL, or else of DATABASE_URL, read
as the command line reads them.

For the tables of ``BGJob(records=True)`` there is a branch of its own, in another folder::

    version_locations = sqlalchemy_bgjob:alembic_migrations/versions
        sqlalchemy_bgjob:alembic_migrations/records
    path_separator = newline

and ``alembic upgrade heads`` runs both.

It keeps its own version table, ``bgjob_alembic_version``, so that it can live beside another
Alembic environment in the same database. The other one must leave that table alone
(``include_object``). A caller that has a connection passes it in
``config.attributes["connection"]``.
"""

import os
from typing import Final

from alembic import context
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, pool

from sqlalchemy_bgjob._process import urls
from sqlalchemy_bgjob._process.exits import CommandError

VERSION_TABLE: Final = "bgjob_alembic_version"

config: Final[Config] = context.config


def database_url() -> str | URL:
    if url := config.get_main_option("sqlalchemy.url"):
        return url
    given = os.environ.get("BGJOB_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if not given:
        raise SystemExit(
            "set sqlalchemy.url in the ini file, or BGJOB_DATABASE_URL or DATABASE_URL"
        )
    try:
        parsed = urls.database_url(given)
    except CommandError as error:
        raise SystemExit(str(error)) from None
    return urls.sync_url(parsed) or parsed


def run_on(connection: Connection) -> None:
    context.configure(connection=connection, version_table=VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()


def run() -> None:
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", version_table=VERSION_TABLE)
        with context.begin_transaction():
            context.run_migrations()
    elif (given := config.attributes.get("connection")) is not None:
        run_on(given)
    else:
        # With an asyncio driver's URL, give a connection instead: `connection.run_sync(...)`.
        engine = create_engine(database_url(), poolclass=pool.NullPool)
        with engine.connect() as connection:
            run_on(connection)


run()
