"""The database: Advanced Alchemy's configuration, the tables, and the queue beside them."""

import os
from datetime import datetime

from advanced_alchemy.extensions.litestar import AsyncSessionConfig, SQLAlchemyAsyncConfig, base
from sqlalchemy.orm import Mapped

from sqlalchemy_bgjob import BGJob

alchemy = SQLAlchemyAsyncConfig(
    connection_string=os.environ["DATABASE_URL"],  # postgresql+asyncpg://...
    before_send_handler="autocommit",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    create_all=True,  # enough for a first try; in a project, a migration
)
engine = alchemy.get_engine()
new_session = alchemy.create_session_maker()


class Order(base.UUIDAuditBase):
    __tablename__ = "orders"

    email: Mapped[str]
    receipt_sent_at: Mapped[datetime | None]


jobs = BGJob(base.UUIDAuditBase)
