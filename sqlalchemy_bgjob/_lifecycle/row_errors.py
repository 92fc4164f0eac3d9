"""Why a job's own row could not be settled, in words that its handler's author can act on."""


class RowLocked(RuntimeError):
    """A user's open transaction refers to the job, so that it can't end now."""

    def __str__(self) -> str:
        return "an open transaction refers to the job and keeps it from ending; it runs again"


class RowMissing(RuntimeError):
    """The job's row is not found in the transaction of its handler's session."""

    def __str__(self) -> str:
        return (
            "the job's own row is not there in the transaction of ctx.session: the handler has "
            "deleted or changed it, or search_path leads to another table; leave the row to the "
            "worker, and return an outcome"
        )


class RowKept(RuntimeError):
    """The statement that settles the job ran, and its row is as it was."""

    def __str__(self) -> str:
        return (
            "a trigger keeps the job's row as it is; a job ends by DELETE and is put off by "
            "UPDATE, so let the trigger return OLD or NEW, or drop it"
        )
