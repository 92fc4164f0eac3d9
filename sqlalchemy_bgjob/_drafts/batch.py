"""A batch whose jobs are being added. Pure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from .ids import new_id

if TYPE_CHECKING:
    from .draft import Draft

OnDead = Literal["continue", "stop"]
FOLLOWER: Final = ":then"
"""Ends the id of the job that follows a batch; before it stands the batch's own id."""


class OpenBatch:
    """What ``with jobs.batch(session) as batch`` gives: pass it on as ``batch=``.

    Attributes:
        id: The batch's id, which ``jobs.Job.batch_id`` of its jobs has too.
        tables: The models of its BGJob.
        on_dead: What becomes of the batch while one of its jobs is dead.
        then: The job that follows it.
        transaction: In which its jobs are enqueued; None while none can be added.
    """

    __slots__ = ("id", "on_dead", "tables", "then", "transaction")

    def __init__(self, tables: object, then: "Draft | None", on_dead: OnDead) -> None:
        if on_dead not in get_args(OnDead):
            raise ValueError(f"on_dead={on_dead!r} is neither 'continue' nor 'stop'")
        self.id: Final[str] = new_id()
        self.tables: Final = tables
        self.on_dead: Final[OnDead] = on_dead
        self.then: Final = then
        self.transaction: object = None

    def __repr__(self) -> str:
        return f"<batch {self.id!r}>"

    @property
    def then_id(self) -> str:
        """The id of the job that follows, for which ``jobs.wait`` can wait after the commit.

        Raises:
            ValueError: None follows, as the batch was begun without ``then=``.
        """
        if self.then is None:
            raise ValueError(f"nothing follows {self!r}; give then= to jobs.batch(...)")
        return f"{self.id}{FOLLOWER}"


def batch_id(options: Mapping[str, Any]) -> str | None:
    """The id of the batch that options name, whose jobs are made now."""
    batch: object = options.get("batch")
    if batch is None:
        return None
    if not isinstance(batch, OpenBatch):
        raise TypeError(
            f"batch= takes what `with jobs.batch(session) as batch` gives, "
            f"not {type(batch).__name__}"
        )
    if batch.transaction is None:
        raise ValueError(
            f"{batch!r} takes no jobs now; add them within `with jobs.batch(session) as batch:`"
        )
    if options.get("unique") is not None:
        raise ValueError(
            "a job with a unique key may be another's, which no batch waits for; give either "
            "unique= or batch="
        )
    return batch.id


def refuse_other_tables(options: Mapping[str, Any], tables: object) -> None:
    """Refuse jobs of other tables than those of the batch that options name."""
    batch: object = options.get("batch")
    if isinstance(batch, OpenBatch) and batch.tables is not tables:
        raise ValueError(f"{batch!r} is of another BGJob() than the handler")


def refuse_other_transaction(batch: OpenBatch | None, transaction: object) -> None:
    """Refuse what would be committed without its batch, or before it, or after its end."""
    # None is no transaction: an idle connection, and a batch that is closed.
    if batch is not None and (transaction is None or batch.transaction is not transaction):
        raise ValueError(
            f"{batch!r} was begun in another transaction; add its jobs within its block, to the "
            f"session or connection that it was begun with, and commit after the block"
        )
