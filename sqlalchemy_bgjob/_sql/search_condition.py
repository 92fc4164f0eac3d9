"""SQL of a search: the condition that its terms are, and bounds that spare a page rows."""

import operator
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    true,
)
from sqlalchemy.dialects.postgresql import JSON, array
from sqlalchemy.sql.selectable import CTE

from .._drafts import validation
from .search_terms import Search, Term, comparison, seconds

_OPERATORS: Final[dict[str, Callable[[Any, Any], ColumnElement[bool]]]] = {
    "=": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_COLUMNS: Final = {"group": "group_key", "batch": "batch_id"}


def condition(table: FromClause, search: Search) -> ColumnElement[bool]:
    """The jobs of a table, live or dead, that fit a search."""
    return and_(true(), *(_fits(table, term) for term in search.terms))


def _fits(table: FromClause, term: Term) -> ColumnElement[bool]:
    if term.field == "arg":
        any_fits: ColumnElement[bool] = _value_in_arg(table, term.path).in_(term.values)
    else:
        any_fits = or_(*(_is(table, term, value) for value in term.values))
    return not_(func.coalesce(any_fits, literal_column("false"))) if term.negated else any_fits


def _is(table: FromClause, term: Term, value: str) -> ColumnElement[bool]:
    c = table.c
    is_dead = "moved_at" in c
    match term.field:
        case "state":
            return _in_state(table, value)
        case "":
            return or_(_text(c.job_id if is_dead else c.id, value), _text(c.type, value))
        case "id" if is_dead:
            return or_(_text(c.job_id, value), _text(c.id, value))
        case "key":
            # As it is stored, with what stands for its scope in front.
            return or_(*(_text(c.unique_key, f"{scope}{value}") for scope in ("", "l:", "q:")))
        case "priority" | "attempt":
            sign, number = comparison(value)
            return _OPERATORS[sign](c[term.field], literal(number, Integer))
        case "worker":
            holder = null() if is_dead else c.claimed_by
            return cast(holder, BigInteger) == literal(int(value) % 2**63, BigInteger)
        case "error":
            return c.last_error.icontains(value, autoescape=True)
        case "since":
            return _for_at_most(c.moved_at if is_dead else c.created_at, value)
        case name:
            return _text(c[_COLUMNS.get(name, name)], value)


def _for_at_most(moment: ColumnElement[Any], duration: str) -> ColumnElement[bool]:
    # As text, which every driver sends alike.
    age = cast(literal(f"{seconds(duration):.3f} seconds", Text), Interval)
    return moment >= func.now() - age


def _in_state(table: FromClause, state: str) -> ColumnElement[bool]:
    c = table.c
    if "moved_at" in c:
        return literal_column("true" if state == "dead" else "false")
    queued = c.claimed_by.is_(None)
    begun = c.next_run_at <= func.now()
    conditions: dict[str, ColumnElement[bool]] = {
        "due": and_(queued, begun),
        "scheduled": and_(queued, c.next_run_at > func.now(), c.waits.is_not(True)),
        "running": c.claimed_by.is_not(None),
        "retrying": and_(queued, c.last_error.is_not(None)),
        "cancelling": c.cancel_at.is_not(None),
        "waiting": c.waits.is_(True),
    }
    return conditions.get(state, literal_column("false"))


def _text(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    if value.endswith("*"):
        return column.startswith(value[:-1], autoescape=True)
    return column == value


def _value_in_arg(table: FromClause, path: tuple[str, ...]) -> ColumnElement[str]:
    """The value at a path of a JSON arg, as text; each time that it stands in SQL it is parsed."""
    keys: ColumnElement[Any] = array([literal(key, Text) for key in path], type_=Text())
    content_type = table.c.headers[validation.CONTENT_TYPE].as_string()
    parsed = cast(func.convert_from(table.c.arg, literal_column("'UTF8'")), JSON)
    found = parsed.op("#>>", return_type=Text())(keys)
    # A CASE, since bytes would fail the conversion.
    return case((content_type.is_(None), found))


def lanes_with(lanes: CTE, search: Search) -> ColumnElement[bool]:
    """The lanes in which what fits can be."""
    terms = [term for term in search.terms if term.field in ("queue", "priority")]
    return and_(true(), *(_fits(lanes, term) for term in terms))


def times_of(job: Any, search: Search) -> list[ColumnElement[bool]]:
    """A bound of next_run_at, where the states that are searched for have one."""
    states = search.only("state")
    if states is not None and {"due", "running"}.issuperset(states):
        return [job.c.next_run_at <= func.now()]
    if states == ("scheduled",):
        return [job.c.next_run_at > func.now()]
    return []


def deaths_of(dead: Table, search: Search) -> list[ColumnElement[bool]]:
    """A bound of moved_at, where only what died lately is searched for: nothing before is read."""
    terms = (term for term in search.terms if term.field == "since" and not term.negated)
    return [_fits(dead, term) for term in terms]
