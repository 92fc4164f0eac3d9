"""The state machine of a job: every transition between queued, running, dead and gone.

Written once, over a plain ``Connection``: the asyncio side calls the same functions from within a
greenlet. There is one file for each verb, most of them named as in :mod:`.._sql`; each docstring
says who commits.
"""

from typing import Any

from sqlalchemy import Connection, Executable, Result

from .._sql.words import parameters


def run(connection: Connection, statement: Executable, **values: Any) -> Result[Any]:
    """Run a statement with the parameters that it names."""
    return connection.execute(statement, parameters(**values))
