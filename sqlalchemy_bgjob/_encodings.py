"""In which encodings a session keeps and sends text, and how to say everything in any of them.

A server or a session that is not UTF-8 can't take every character. The text of an error may hold
any; where the statement that records it would fail for that, its job would never end.
"""

from typing import Any, Final

from sqlalchemy import Connection

UTF8: Final = "UTF8"


def storable(connection: Connection, text: str | None) -> str | None:
    """The text, as this session can store it: what may not fit is escaped."""
    if text is None or text.isascii() or encodings(connection) == (UTF8, UTF8):
        return text
    return text.encode("ascii", "backslashreplace").decode("ascii")


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


def _plain(name: str | None) -> str | None:
    # asyncpg asks for "utf-8", and is told so.
    return name and name.upper().replace("-", "").replace("UNICODE", UTF8)


def encoding_problem(connection: Connection) -> str | None:
    """What is wrong with these encodings, and what to do; None if nothing is."""
    server, client = encodings(connection)
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
