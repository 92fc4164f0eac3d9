"""Why a job's own row could not be settled, in words that its handler's author can act on."""

from collections.abc import Iterable


class RowLocked(RuntimeError):
    """A user's open transaction refers to a job, so that it can't end now.

    Args:
        ids: Of the jobs that it may refer to; of a chunk that may be some.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        super().__init__()
        self.ids = frozenset(ids)

    def __str__(self) -> str:
        return "an open transaction refers to the job and keeps it from ending; it runs again"


class RowMissing(RuntimeError):
    """The job's row is not found in the transaction of its handler's session.

    Args:
        ids: Of the jobs whose rows are missing; of a chunk that may be some.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        super().__init__()
        self.ids = frozenset(ids)

    def __str__(self) -> str:
        return (
            "the job's own row is not there in the transaction of ctx.session: the handler has "
            "deleted or changed it, or search_path leads to another table; leave the row to the "
            "worker, and return an outcome"
        )


class RunUndone(RuntimeError):
    """Other jobs of the same call had lost their leases, so nothing of it was committed.

    Args:
        others: How many.
    """

    def __init__(self, others: int) -> None:
        super().__init__(others)
        self.others = others

    def __str__(self) -> str:
        return (
            f"{self.others} of the jobs of the same call had lost their leases, and all of them "
            f"share ctx.session; what the call wrote is undone, and this job runs again"
        )


class RowKept(RuntimeError):
    """The statement that settles the job ran, and its row is as it was."""

    def __str__(self) -> str:
        return (
            "a trigger keeps the job's row as it is; a job ends by DELETE and is put off by "
            "UPDATE, so let the trigger return OLD or NEW, or drop it"
        )
