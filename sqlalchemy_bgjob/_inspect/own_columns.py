"""The columns that an application has added to its jobs, where the application is not there."""

from sqlalchemy import Column, Connection, inspect
from sqlalchemy.types import NULLTYPE

from ..models import Models
from ..schema._names import translated


def add_own_columns(connection: Connection, models: Models) -> None:
    """Let statements carry the columns that an application has added, such as a tenant's id.

    Only for models that were built without an application: it changes their tables.
    """
    where = translated(connection, models.schema)
    for table in (models.job, models.dead_job):
        for column in inspect(connection).get_columns(table.name, where):
            if column["name"] not in table.c and not column.get("computed"):
                table.append_column(Column(column["name"], NULLTYPE))
