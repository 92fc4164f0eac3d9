"""The Alembic environment for projects that run these revisions and no others.

    alembic -c my.ini upgrade head

with, in ``my.ini``::

    [alembic]
    script_location = sqlalchemy_bgjob:alembic_migrations
    sqlalchemy.url = postgresql+psycopg://...       # or BGJOB_DATABASE_URL in the environment
    bgjob_schema = app                              # optional, as is bgjob_table_prefix

It keeps its own version table, ``bgjob_alembic_version``, so that it can live beside another
Alembic environment in the same database. The other one must leave that table alone
(``include_object``). A caller that has a connection passes it in
``config.attributes["connection"]``.
"""

import os
from typing import Final

from alembic import context
from alembic.config import Config
from sqlalchemy import Connection, create_engine, pool

VERSION_TABLE: Final = "bgjob_alembic_version"

config: Final[Config] = context.config


def database_url() -> str:
    url = config.get_main_option("sqlalchemy.url") or os.environ.get("BGJOB_DATABASE_URL")
    if not url:
        raise SystemExit("set sqlalchemy.url in the ini file, or BGJOB_DATABASE_URL")
    return url


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
