"""In which encodings a session keeps and sends text, and how to say everything in any of them.

A server or a session that is not UTF-8 can't take every character. The text of an error may hold
any; where the statement that records it would fail for that, its job would never end.
"""

from typing import Any, Final

from sqlalchemy import Connection, text

UTF8: Final = "UTF8"
_CLIENT_AT_FIRST: Final = text("SELECT reset_val FROM pg_settings WHERE name = 'client_encoding'")


def storable(connection: Connection, words: str | None) -> str | None:
    """The words, as this session can store it: what may not fit is escaped."""
    if words is None or words.isascii() or encodings(connection) == (UTF8, UTF8):
        return words
    return words.encode("ascii", "backslashreplace").decode("ascii")


def encodings(connection: Connection) -> tuple[str | None, str | None]:
    """The server's and the session's encoding, as the driver was told; None where it can't say."""
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
    """Let a new session of the worker's own read and write all that a UTF-8 database holds.

    Else a row that holds what the session's encoding has not could never be claimed. The session
    is not one that the application's pool may get back. Without a round trip where it is UTF-8.
    """
    if not changes_encoding(connection):
        return
    if connection.dialect.driver == "psycopg2":  # it decodes by what it was told itself
        driver: Any = connection.connection.driver_connection
        driver.set_client_encoding(UTF8)
        return
    connection.exec_driver_sql(f"SET client_encoding TO '{UTF8}'")
    connection.commit()


def changes_encoding(connection: Connection) -> bool:
    """Whether :func:`speak_utf8` has something to change."""
    server, client = encodings(connection)
    return server == UTF8 and client not in (None, UTF8)


def _plain(name: str | None) -> str | None:
    # asyncpg asks for "'utf-8'", and is told so; with the quotes, if PgBouncer answers.
    return name and name.strip("'").upper().replace("-", "").replace("UNICODE", UTF8)


def encoding_problem(connection: Connection) -> str | None:
    """What is wrong with these encodings, and what to do; None if nothing is."""
    server, client = encodings(connection)
    if client == UTF8:  # perhaps by speak_utf8: the application's own sessions are as they began
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
