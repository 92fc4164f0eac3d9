"""Tenants by row: all share the tables, and row level security shows each its own rows.

There are three roles: the owner of the tables, one that serves requests, and one for the workers.
Policies hold for the last two. A worker sees the jobs of all tenants, and each job runs as its
tenant.

To run it, in this folder::

    $ docker run --rm -d -p 5432:5432 -e POSTGRES_PASSWORD=shop postgres:18
    $ pip install -e "../..[psycopg]"
    $ export OWNER_URL=postgresql+psycopg://postgres:shop@localhost:5432/postgres
    $ export WEB_URL=postgresql+psycopg://shop_web:web@localhost:5432/postgres
    $ export WORKER_URL=postgresql+psycopg://shop_worker:worker@localhost:5432/postgres
    $ psql -h localhost -U postgres -c "CREATE ROLE shop_web LOGIN PASSWORD 'web'"
    $ psql -h localhost -U postgres -c "CREATE ROLE shop_worker LOGIN PASSWORD 'worker'"
    $ python -c "import by_row; by_row.create_tables()"
    $ sqlalchemy-bgjob grants --enqueue shop_web --worker shop_worker > grants.sql
    $ psql -h localhost -U postgres -f grants.sql
    $ python by_row.py acme globex
    $ BGJOB_DATABASE_URL="$WORKER_URL" sqlalchemy-bgjob worker by_row:jobs
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Identity, create_engine, func, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, Context, DeadJobMixin, JobMixin, enqueue

OWNER_URL = os.environ["OWNER_URL"]
WEB_URL = os.environ["WEB_URL"]
WORKER_URL = os.environ["WORKER_URL"]

web = create_engine(WEB_URL)

# PostgreSQL's word for a setting that was set in an earlier transaction is the empty string.
TENANT = "nullif(current_setting('shop.tenant', true), '')"


class Base(DeclarativeBase):
    pass


class OfTenant:
    """Rows get the tenant of the transaction that inserts them; without one, PostgreSQL refuses."""

    tenant: Mapped[str] = mapped_column(server_default=text(TENANT))


class Order(OfTenant, Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    price: Mapped[int]


class Report(OfTenant, Base):
    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    orders: Mapped[int]
    turnover: Mapped[int]


class Job(JobMixin, OfTenant, Base):
    pass


class DeadJob(DeadJobMixin, OfTenant, Base):
    pass


jobs = BGJob(models=(Job, DeadJob))


def policies(web_role: str, worker_role: str) -> Iterator[str]:
    """What the roles see: their tenant's rows, and workers the jobs of all."""
    for table in ("orders", "reports"):
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield f"CREATE POLICY of_tenant ON {table} USING (tenant = {TENANT})"
        yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {web_role}, {worker_role}"
    for table in ("bgjob_job", "bgjob_dead_job"):
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield f"CREATE POLICY of_tenant ON {table} TO {web_role} USING (tenant = {TENANT})"
        yield f"CREATE POLICY of_all ON {table} TO {worker_role} USING (true)"


def create_tables() -> None:
    """Make the tables as their owner, for whom policies do not hold; in a project, a migration."""
    owner = create_engine(OWNER_URL)
    roles = [make_url(url).username or "" for url in (WEB_URL, WORKER_URL)]
    quoted = map(owner.dialect.identifier_preparer.quote, roles)
    with owner.begin() as connection:
        Base.metadata.create_all(connection)
        for statement in policies(*quoted):
            connection.exec_driver_sql(statement)
    owner.dispose()


def become(session: Session, tenant: str) -> None:
    """Act as a tenant until the end of the transaction."""
    session.execute(select(func.set_config("shop.tenant", tenant, True)))


@contextmanager
def session_of(tenant: str) -> Iterator[Session]:
    """A session for one of a tenant's requests."""
    with Session(web) as session, session.begin():
        become(session, tenant)
        yield session


@jobs.handler("write_report", queue="reports")
def write_report(ctx: Context[Session]) -> None:
    session = ctx.session
    become(session, session.scalars(select(Job.tenant).where(Job.id == ctx.job.id)).one())
    orders, turnover = session.execute(
        select(func.count(), func.coalesce(func.sum(Order.price), 0)).select_from(Order)
    ).one()
    session.add(Report(orders=orders, turnover=turnover))


def sell(tenant: str, prices: Iterable[int]) -> None:
    """Take orders, and enqueue a report of them in the same transaction."""
    with session_of(tenant) as session:
        session.add_all(Order(price=price) for price in prices)
        enqueue(session, write_report)


if __name__ == "__main__":
    for tenant in sys.argv[1:]:
        sell(tenant, [10, 20])
