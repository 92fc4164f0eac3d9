"""Tenants by schema: each has its orders, its reports and its queue in a schema of its own.

The models name no schema. Each tenant has an engine that translates "no schema" to the tenant's,
for requests and for its worker.

To run it, in this folder::

    $ docker run --rm -d -p 5432:5432 -e POSTGRES_PASSWORD=shop postgres:18
    $ pip install -e "../..[psycopg]"
    $ export DATABASE_URL=postgresql+psycopg://postgres:shop@localhost:5432/postgres
    $ python by_schema.py acme globex

Then a worker for each tenant, which writes the tenant's report::

    $ TENANT=acme sqlalchemy-bgjob worker by_schema:jobs --engine "by_schema:engine_of_worker()"
    $ TENANT=globex sqlalchemy-bgjob worker by_schema:jobs --engine "by_schema:engine_of_worker()"
"""

import os
import sys
from collections.abc import Iterable

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema

from sqlalchemy_bgjob import BGJob, Context, enqueue

DATABASE_URL = os.environ["DATABASE_URL"]
engine = create_engine(DATABASE_URL)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


class Report(Base):
    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[int]
    turnover: Mapped[int]


jobs = BGJob(Base)


def engine_of(tenant: str) -> Engine:
    """The engine for a tenant's requests; all tenants share its pool."""
    return engine.execution_options(schema_translate_map={None: tenant})


def engine_of_worker() -> Engine:
    """An engine with a pool of its own, for the worker of the tenant in the environment."""
    tenant = os.environ["TENANT"]
    return create_engine(DATABASE_URL, execution_options={"schema_translate_map": {None: tenant}})


@jobs.handler("write_report", queue="reports")
def write_report(ctx: Context[Session]) -> None:
    orders, turnover = ctx.session.execute(
        select(func.count(), func.coalesce(func.sum(Order.price), 0)).select_from(Order)
    ).one()
    ctx.session.add(Report(orders=orders, turnover=turnover))


def add_tenant(tenant: str) -> None:
    """Make a tenant's schema and its tables; in a project, a migration."""
    with engine.begin() as connection:
        connection.execute(CreateSchema(tenant, if_not_exists=True))
    Base.metadata.create_all(engine_of(tenant))


def sell(tenant: str, prices: Iterable[int]) -> None:
    """Take orders, and enqueue a report of them in the same transaction."""
    with Session(engine_of(tenant)) as session, session.begin():
        session.add_all(Order(price=price) for price in prices)
        enqueue(session, write_report)


if __name__ == "__main__":
    for tenant in sys.argv[1:]:
        add_tenant(tenant)
        sell(tenant, [10, 20])
