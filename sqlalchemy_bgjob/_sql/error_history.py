"""The history of a job's errors: a JSON array to which releases, burials and rescues append.

It holds the first failed attempt and the last nine, so it stays small however long a job fails.
Nothing else writes it: of a job that never failed it is null.
"""

from typing import Any, Final

from sqlalchemy import ColumnElement, Text, case, cast, column, func, literal_column, type_coerce
from sqlalchemy.dialects.postgresql import JSONB, array

# Written out: none of these is a parameter that each settlement would have to send.
_MOST: ColumnElement[int] = literal_column("10")
_SECOND: ColumnElement[int] = literal_column("1")
_LONGEST: ColumnElement[int] = literal_column("2048")
_HALF: ColumnElement[int] = literal_column("1014")
_CUT: ColumnElement[str] = literal_column("E'\\n... cut ...\\n'", Text)

_STAMP: Final = (
    func.jsonb_build_object(literal_column("'at'"), func.statement_timestamp())
    .table_valued(column("entry", JSONB), joins_implicitly=True)
    .render_derived(name="stamp")
)
"""The beginning of an entry, by the server's clock, as a table of one row; see ``words.CLOCK``."""


def appended(
    errors: ColumnElement[Any],
    *,
    attempt: ColumnElement[int],
    worker: ColumnElement[int],
    error: ColumnElement[Any],
) -> ColumnElement[Any]:
    """A history with one more entry; of ten, the second gives way.

    A value that is no array was not written by the library, and a new history begins. Every
    function of a column is immutable, as an UPDATE of a distributed table wants it.
    """
    # One CASE within the other: the length of what is no array is an error.
    history = type_coerce(errors, JSONB)
    kept = case(
        (
            func.jsonb_typeof(history) == literal_column("'array'"),
            case(
                (
                    func.jsonb_array_length(history) >= _MOST,
                    history.op("-", return_type=JSONB())(_SECOND),
                ),
                else_=history,
            ),
        ),
        else_=cast(literal_column("'[]'"), JSONB),
    )
    numbers = (
        _word('{"attempt": ') + cast(attempt, Text) + _word(', "worker": ') + cast(worker, Text)
    )
    text = func.jsonb_object(array([_word("error"), _cut(cast(error, Text))]), type_=JSONB())
    entry = _joined(_joined(_STAMP.c.entry, cast(numbers + _word("}"), JSONB)), text)
    return _joined(kept, entry)


def _cut(error: ColumnElement[str]) -> ColumnElement[str]:
    head, tail = func.left(error, _HALF, type_=Text()), func.right(error, _HALF, type_=Text())
    return case((func.char_length(error) > _LONGEST, head + _CUT + tail), else_=error)


def _joined(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    return one.op("||", return_type=JSONB())(other)


def _word(text: str) -> ColumnElement[str]:
    return literal_column(f"'{text}'", Text)
