"""The application of the demo: its tables, and the handler that indexes a file.

A user would write the same, with one exception: some jobs take a lock that the demo holds until it
has killed a worker. So the kill meets a running job, whatever the size of the folder.
"""

import hashlib
import os
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import ForeignKey, MetaData, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .._handlers.outcomes import MoveToDlq
from .._worker.run import Context
from ..bgjob import BGJob

SCHEMA: Final = os.environ.get("BGJOB_DEMO_SCHEMA", "bgjob_demo")


class Base(DeclarativeBase):
    """The base of the demo's own tables and of the queue's."""

    metadata = MetaData(schema=SCHEMA)


class File(Base):
    """A file to index."""

    __tablename__ = "file"

    id: Mapped[int] = mapped_column(primary_key=True)
    # Bytes: the name of a file need not be valid in any encoding.
    path: Mapped[bytes]


class Entry(Base):
    """The result of a job for a file. Nothing is unique here, or a second effect would not show."""

    __tablename__ = "entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    file_id: Mapped[int] = mapped_column(ForeignKey(File.id))
    lines: Mapped[int]
    words: Mapped[int]
    sha256: Mapped[str]
    attempt: Mapped[int]
    crashes: Mapped[int]


jobs = BGJob(Base)


@dataclass
class IndexFile:
    """The arg of a job."""

    file_id: int
    fails_first: bool = False
    waits_for: int | None = None
    """An advisory lock that the demo holds until it has killed a worker."""


class Counts(NamedTuple):
    """The counts and the digest of a file."""

    lines: int
    words: int
    sha256: str


def count(path: bytes) -> Counts:
    """Count a file as bytes, whatever its encoding, and even if it is no text.

    Raises:
        OSError: It can't be read.
    """
    lines = words = 0
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - a Path can't be made of bytes
        for line in file:
            lines += 1
            words += len(line.split())
            digest.update(line)
    return Counts(lines, words, digest.hexdigest())


@jobs.handler("index_file", queue="files")
def index_file(ctx: Context[Session], arg: IndexFile) -> MoveToDlq | None:
    """Count a file's lines and words, and write them in the transaction that ends the job."""
    file = ctx.session.get_one(File, arg.file_id)
    try:
        counts = count(file.path)
    except OSError as error:
        return MoveToDlq(f"the file can't be read: {error.strerror}")
    entry = Entry(
        file_id=file.id, attempt=ctx.job.attempt, crashes=ctx.job.crashes, **counts._asdict()
    )
    ctx.session.add(entry)
    ctx.session.flush()
    if arg.waits_for is not None:
        ctx.session.execute(select(func.pg_advisory_xact_lock_shared(arg.waits_for)))
    if arg.fails_first and ctx.job.attempt - ctx.job.crashes == 1:  # a crash is no failure
        raise FirstAttemptError
    return None


class FirstAttemptError(Exception):
    """A failure as any handler may have; its writes are rolled back."""
