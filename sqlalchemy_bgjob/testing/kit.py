"""What a test asks and does about jobs, in its own transaction: :class:`JobKit`.

Nothing is simulated: a job is enqueued, claimed, run and settled by the statements of production,
in the transaction of the test, which rolls it all back.
"""

from .firing import Firing
from .looking import Looking
from .waiting import Waiting
from .working import Working


class JobKit(Looking, Working, Firing, Waiting):
    """What a test of an application asks and does about jobs, in its own transaction.

    The pytest plugin gives one as the fixture ``bgjob``; elsewhere make one by ``JobKit(jobs)``.
    Each *target* is a Session or Connection, or one of their asyncio twins: then await the result.
    Nothing is committed, so a rollback undoes all. With a session, what a job has changed is seen
    on its objects afterwards.

    Args:
        jobs: The application's BGJob.

    Attributes:
        state: What handlers find as ``ctx.state``, in the place of what ``lifespan=`` of a worker
            yields; a test may set it.
    """
