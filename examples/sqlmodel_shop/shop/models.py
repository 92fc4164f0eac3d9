"""The shop's own table, and what a client sends."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import DateTime
from sqlmodel import Field, SQLModel

from .db import engine


class NewOrder(SQLModel):
    email: str


class Order(NewOrder, table=True):
    __tablename__ = "orders"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    receipt_sent_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


def create_tables() -> None:
    """Make all tables, the queue's among them: enough for a first try."""
    SQLModel.metadata.create_all(engine)
