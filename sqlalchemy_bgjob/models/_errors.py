"""What a row says of its failed attempts: the history, and the kind of the last error."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, literal_column
from sqlalchemy.ext.hybrid import hybrid_property

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped


@dataclass(frozen=True, slots=True)
class PastError:
    """One failed attempt of a job.

    Attributes:
        at: When it was written, by the database's clock.
        attempt: Which attempt it was, from 1. After a redrive they are counted anew. If the job was
            given up without a run, it is the number of the last run, or 0 without any.
        worker_id: The id of the worker that held the job.
        error: As in ``last_error``; of one longer than 2,048 characters the middle is cut out.
    """

    at: datetime
    attempt: int
    worker_id: int
    error: str


class ErrorHistory:
    """What live and dead jobs tell of their failures. A mixin."""

    if TYPE_CHECKING:
        errors: Mapped[Any]
        last_error: Mapped[str | None]

    @property
    def error_history(self) -> tuple[PastError, ...]:
        """The job's failed attempts, the oldest first: the first one, and the last nine.

        Attempts that do not count are left out. A redrive keeps the history.
        """
        return tuple(parsed_errors(self.errors)) if isinstance(self.errors, list) else ()

    @hybrid_property
    def error_type(self) -> str | None:
        """The first line of ``last_error`` up to its first colon; None if there is no error.

        Of an exception this is the name of its class. It works in WHERE and GROUP BY too.
        """
        if self.last_error is None:
            return None
        return self.last_error.partition("\n")[0].partition(":")[0]

    @error_type.inplace.expression
    @classmethod
    def _error_type_sql(cls) -> ColumnElement[str | None]:
        return error_type_of(cls.last_error)


def error_type_of(last_error: Any) -> ColumnElement[str | None]:
    """The SQL of :attr:`ErrorHistory.error_type`."""
    # Without parameters: two uses of it must be the same text, or GROUP BY would not know it.
    one: ColumnElement[int] = literal_column("1")
    line = func.split_part(last_error, func.chr(literal_column("10")), one)
    return func.split_part(line, literal_column("':'"), one)


def parsed_errors(errors: Iterable[Any]) -> Iterator[PastError]:
    """What the library has written; what SQL has put there in another form is passed over."""
    for entry in errors:
        if not isinstance(entry, Mapping):
            continue
        try:
            yield PastError(
                at=datetime.fromisoformat(entry["at"]),
                attempt=int(entry["attempt"]),
                worker_id=int(entry["worker"]),
                error=str(entry["error"]),
            )
        except (KeyError, TypeError, ValueError):
            continue
