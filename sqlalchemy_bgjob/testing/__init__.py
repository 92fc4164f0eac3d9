"""For the tests of applications that use the queue. Nothing here is needed to run it.

:class:`JobKit` is what a test asks and does about jobs; the pytest plugin gives it as the fixture
``bgjob``. :class:`EmbeddedPostgres` is a server for tests and first steps: it needs the extra
``embedded``.
"""

from .._dev.embedded import EmbeddedPostgres, EmbeddedPostgresError
from .firing import Fired
from .inline import Inline
from .kit import JobKit
from .matching import EnqueuedJob

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "EnqueuedJob", "Fired", "Inline", "JobKit"]
