"""Jobs from programs that use psycopg2 by itself, and from tables that have no model."""

import json
from typing import Any

from nightly import Import, import_line
from sqlalchemy import Connection, Engine, column, select, table

from sqlalchemy_bgjob import enqueue, enqueue_from


def in_one_transaction(engine: Engine) -> None:
    """SQLAlchemy opens the connection, and psycopg2's cursor works in the same transaction."""
    with engine.begin() as connection:
        cursor = connection.connection.cursor()  # psycopg2's own
        cursor.execute("INSERT INTO lines VALUES (%s, %s)", (1, "20.5"))
        enqueue(connection, import_line, Import(line=1))


def by_hand(psycopg2_connection: Any) -> None:
    """Without SQLAlchemy: a row with id, queue, type and arg; the rest has defaults."""
    with psycopg2_connection, psycopg2_connection.cursor() as cursor:
        cursor.execute("INSERT INTO lines VALUES (%s, %s)", (2, "21.5"))
        cursor.execute(
            "INSERT INTO bgjob_job (id, queue, type, arg)"
            " VALUES (CAST(gen_random_uuid() AS text), 'import', 'import_line', %s)",
            [json.dumps({"line": 2}).encode()],
        )


def from_a_table_without_a_model(connection: Connection) -> int:
    """Each column by its name, as column() has one and text() has none."""
    inbox = table("inbox", column("n"))
    return enqueue_from(connection, import_line, select(inbox.c.n.label("line")))
