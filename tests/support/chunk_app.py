"""Handlers of chunks, which add a row for each job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, Context

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


class Base(DeclarativeBase): ...


class Added(Base):
    """Not unique: a job that has its effect twice has two rows."""

    __tablename__ = "added"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


jobs = BGJob(Base)


@jobs.handler("add", queue="functions", chunk=10, wait=1.0)
def add(ctx: Context[Session], numbers: list[int]) -> None:
    """Add a row for each number."""
    ctx.session.add_all(Added(number=number) for number in numbers)


@jobs.handler("add_async", queue="coroutines", chunk=10, wait=1.0)
async def add_async(ctx: Context[AsyncSession], numbers: list[int]) -> None:
    """Add a row for each number."""
    ctx.session.add_all(Added(number=number) for number in numbers)
    await ctx.session.flush()
