"""Handlers of pages and of what binds them, which add a row for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, Context

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


class Base(DeclarativeBase): ...


class Done(Base):
    """Not unique: a job that has its effect twice has two rows."""

    __tablename__ = "done"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


jobs = BGJob(Base)


@jobs.handler("page", queue="functions")
def page(ctx: Context[Session], what: str) -> None:
    """Add a row."""
    ctx.session.add(Done(what=what))


@jobs.handler("bind", queue="functions")
def bind(ctx: Context[Session], what: str) -> None:
    """Add a row."""
    ctx.session.add(Done(what=what))


@jobs.handler("page_async", queue="coroutines")
async def page_async(ctx: Context[AsyncSession], what: str) -> None:
    """Add a row."""
    ctx.session.add(Done(what=what))


@jobs.handler("bind_async", queue="coroutines")
async def bind_async(ctx: Context[AsyncSession], what: str) -> None:
    """Add a row."""
    ctx.session.add(Done(what=what))


@jobs.handler("plain", queue="plain", session=False)
def plain(ctx: Context[None], what: str) -> None:
    """Do nothing; its end is written by the worker's loop."""
