"""The encodings of server and session, and how to store any text in spite of them.

A server or a session that is not UTF-8 can't take every character, and the text of an error may
hold any. If the statement that records the error failed for that, the job would never end.
"""

from typing import Any, Final

from sqlalchemy import Connection, text

UTF8: Final = "UTF8"
_CLIENT_AT_FIRST: Final = text("SELECT reset_val FROM pg_settings WHERE name = 'client_encoding'")


def storable(connection: Connection, words: str | None) -> str | None:
    """The words, with non-ASCII characters escaped unless server and session are UTF-8."""
    if words is None or words.isascii() or encodings(connection) == (UTF8, UTF8):
        return words
    return words.encode("ascii", "backslashreplace").decode("ascii")


def encodings(connection: Connection) -> tuple[str | None, str | None]:
    """The encodings of server and session, as the driver knows them; None where it does not."""
    driver: Any = connection.connection.driver_connection
    match connection.dialect.driver:
        case "psycopg" | "psycopg_async":
            status = driver.info.parameter_status
        case "psycopg2":
            status = driver.get_parameter_status
        case "asyncpg":
            settings = driver.get_settings()
            status = lambda name: getattr(settings, name, None)  # noqa: E731
        case _:
            return None, None
    return status("server_encoding"), _plain(status("client_encoding"))


def speak_utf8(connection: Connection) -> None:
    """Set the client_encoding of a worker's own new session to UTF-8, if the database is UTF-8.

    Otherwise a row with a character that the session's encoding lacks could never be claimed. Not
    for connections of the application's pool. No round trip where the session is UTF-8 already.
    """
    server, client = encodings(connection)
    if server != UTF8 or client in (None, UTF8):
        return
    if connection.dialect.driver == "psycopg2":  # it decodes as its own API was told
        driver: Any = connection.connection.driver_connection
        driver.set_client_encoding(UTF8)
        return
    connection.exec_driver_sql(f"SET client_encoding TO '{UTF8}'")
    connection.commit()


def _plain(name: str | None) -> str | None:
    # The server reports utf-8, as asyncpg asked for it; PgBouncer keeps asyncpg's quotes.
    return name and name.strip("'").upper().replace("-", "").replace("UNICODE", UTF8)


def encoding_problem(connection: Connection) -> str | None:
    """What is wrong with these encodings, and what to do; None if nothing is."""
    server, client = encodings(connection)
    if client == UTF8:  # perhaps by speak_utf8, which the application's sessions lack
        client = _plain(connection.execute(_CLIENT_AT_FIRST).scalar())
    if server not in (None, UTF8):
        return (
            f"the database's encoding is {server}: it can't store every text, and what does not "
            f"fit into an error's is escaped; use a database WITH ENCODING 'UTF8'"
        )
    if client not in (None, UTF8):
        return (
            f"the session's client_encoding is {client}: it can't read and write every text, and "
            f"what does not fit into an error's is escaped; set it to UTF8, where the role, "
            f"PGCLIENTENCODING or the connection's options say otherwise"
        )
    return None
