"""The tables under several names, and what ``create_all()`` makes of the models under each."""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, MetaData, create_engine

from sqlalchemy_bgjob import BGJob, models
from sqlalchemy_bgjob._handlers.registry import Registry
from sqlalchemy_bgjob.models import check_args_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.databases import TestServer

CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


@dataclass(frozen=True)
class Names:
    """Where the tables are and how they are called."""

    schema: str | None = None
    prefix: str = "bgjob_"
    convention: bool = False

    @property
    def where(self) -> dict[str, Any]:
        return {"schema": self.schema, "table_prefix": self.prefix}

    def without_convention(self) -> Names:
        return replace(self, convention=False)

    def metadata(self) -> MetaData:
        metadata = MetaData(naming_convention=CONVENTION if self.convention else None)
        models.build_models(metadata, **self.where)
        return metadata


NAMES = {
    "plain": Names(),
    "convention": Names(convention=True),
    "schema": Names(schema="app"),
    "weird": Names(schema='We"ird 100% Schema', prefix='It\'s 5% "x":y_'),
    "prefix": Names(prefix="shop_"),
    "no_prefix": Names(prefix=""),
}


def create_all(connection: Connection, names: Names) -> None:
    if names.schema:
        quoted = connection.dialect.identifier_preparer.quote_schema(names.schema)
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}", execution_options={})
    names.metadata().create_all(connection)


@functools.cache
def _mapped(**options: Any) -> BGJob[Any, Any]:
    made: BGJob[Any, Any] = BGJob(MetaData(), **options)
    return made


def new_queue(**options: Any) -> BGJob[Any, Any]:
    """A queue without handlers, on models that all tests with the same options share.

    To map them takes longer than many a test does; and what was compiled for them is found again.
    """
    return without_handlers(_mapped(**options))


def without_handlers(jobs: BGJob[Any, Any]) -> BGJob[Any, Any]:
    """A queue on the same models."""
    other = copy.copy(jobs)
    other.registry = Registry()
    check_args_by(other.DeadJob, other.registry.codec)
    return other


@contextmanager
def new_engine(server: TestServer) -> Iterator[Engine]:
    """An engine for a new database, which is dropped at the end."""
    url = server.create_database("shared")
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()
        server.drop_database(url)
