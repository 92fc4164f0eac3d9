"""Fixtures for tests of commands and worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import cli_app as app
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture
def tables(engine: Engine) -> Engine:
    """The tables of ``support.cli_app`` in this test's database."""
    app.metadata.create_all(engine)
    return engine


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A proxy before the server, which can break and freeze connections."""
    with Proxy(database_url) as proxy:
        yield proxy
