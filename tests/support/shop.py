"""A small application as users write it, for tests that need jobs of their own.

Handlers are registered once for the process; a test makes the tables in a database of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - the codec resolves it
from decimal import Decimal  # noqa: TC003
from typing import TYPE_CHECKING, Any
from uuid import UUID  # noqa: TC003

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, Context

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


class Base(DeclarativeBase):
    """The application's base."""


class Order(Base):
    """A row of the user's own."""

    __tablename__ = "order"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    total: Mapped[Decimal] = mapped_column(default=0)


jobs = BGJob(Base)
Job = jobs.Job


@dataclass
class Receipt:
    """The arg of most jobs."""

    order_id: int
    note: str | None = None


@dataclass
class Invoice:
    """An arg of types that JSON does not have."""

    id_: UUID
    due: datetime
    amount: Decimal


@jobs.handler("send_receipt", queue="mail")
def send_receipt(ctx: Context[Session], receipt: Receipt) -> None:
    """Take a dataclass."""


@jobs.handler("send_invoice", queue="mail")
def send_invoice(ctx: Context[Session], invoice: Invoice) -> None:
    """Take a dataclass of types that JSON does not have."""


@jobs.handler("store", queue="files")
def store(ctx: Context[Session], content: bytes) -> None:
    """Take raw bytes."""


@jobs.handler("note")
def note(ctx: Context[Session], value: Any) -> None:
    """Take any JSON value, or bytes."""


@jobs.handler("clean_up")
def clean_up(ctx: Context[Session]) -> None:
    """Take nothing."""


def make_tables(engine: Engine | Connection) -> None:
    """Make the application's tables and the queue's."""
    Base.metadata.create_all(engine)
