"""A job's first lease: the server's clock."""

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class lease_at_insert(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it is
    """The server's clock in microseconds; it outruns leases, so a reused id never repeats one."""

    type: BigInteger = BigInteger()
    inherit_cache: bool | None = True


@compiles(lease_at_insert)
def _lease_default(element: Any, compiler: Any, **_: Any) -> str:
    return "(CAST(EXTRACT(epoch FROM clock_timestamp()) * 1000000 AS BIGINT))"


@compiles(lease_at_insert, "postgresql")
def _lease_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    # Spelt exactly as PostgreSQL returns it. If the texts differ, Alembic with
    # compare_server_default=True compares the values, and a clock never reads the same twice.
    return "((EXTRACT(epoch FROM clock_timestamp()) * (1000000)::numeric))::bigint"


@compiles(lease_at_insert, "sqlite")
def _lease_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    return "(CAST(strftime('%s', 'now') AS INTEGER) * 1000000)"
