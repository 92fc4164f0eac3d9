"""The pytest plugin: the fixture ``bgjob``. pytest finds it where the package is installed.

It imports nothing before a fixture is asked for: most test suites have no use of it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

__tracebackhide__: Final = True

if TYPE_CHECKING:
    from .bgjob import BGJob
    from .testing import JobKit


@pytest.fixture(scope="session")
def bgjob_jobs() -> "BGJob[Any, Any]":
    """The application's BGJob. Override this fixture in your conftest.py."""
    raise pytest.UsageError(
        "the fixture bgjob needs your BGJob; write into conftest.py:\n\n"
        "    @pytest.fixture(scope='session')\n"
        "    def bgjob_jobs():\n"
        "        import shop.tasks  # registers the handlers\n"
        "        from shop.db import jobs\n"
        "        return jobs"
    )


@pytest.fixture
def bgjob(bgjob_jobs: "BGJob[Any, Any]") -> "Iterator[JobKit]":
    """What a test asks and does about jobs: a :class:`sqlalchemy_bgjob.testing.JobKit`.

    The test fails if it has forgotten an ``await``, as nothing was asserted or done then.
    """
    from .testing import JobKit  # noqa: PLC0415

    kit = JobKit(bgjob_jobs)
    yield kit
    kit.check_awaited()


@pytest.fixture(scope="session")
def bgjob_postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that ends with the tests; needs the extra ``embedded``."""
    from .testing import EmbeddedPostgres  # noqa: PLC0415

    with EmbeddedPostgres.start(settings={"fsync": "off"}) as server:
        yield server.url
