"""What all other modules import: the engine, the queue, and a session for each request."""

import os
from collections.abc import Iterator

from sqlmodel import Session, SQLModel, create_engine

from sqlalchemy_bgjob import BGJob

engine = create_engine(os.environ["DATABASE_URL"])
jobs = BGJob(SQLModel)  # its tables join SQLModel.metadata


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session
