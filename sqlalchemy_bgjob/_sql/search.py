"""SQL of the jobs that a search finds: pages, counts and single jobs, at a bounded price.

Jobs have no index for lists, as each index is a cost of every enqueue. So a page walks the indexes
that there are, live jobs by the claim's and dead ones by the time of death, looks at no more than
so many rows, and says how far it came: the next page goes on from there.
"""

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Executable,
    Float,
    Integer,
    Select,
    Table,
    Text,
    any_,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.sql.selectable import CTE

from ..models import error_type_of
from .search_condition import condition, deaths_of, lanes_with, times_of
from .search_terms import Search
from .words import ONLY, SECOND, Tables, array_parameter, in_order_of_claims, parameter, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

FEW: Final = 3
"""How far each lane is read at least, so that many lanes together get on."""
MOST_DEATHS: Final = 20
"""How many times that one job has died are read."""
_SHOWN: Final = (
    *("id", "job_id", "queue", "type", "priority", "attempt", "crashes", "lease", "claimed_by"),
    *("next_run_at", "created_at", "updated_at", "job_created_at", "job_updated_at", "moved_at"),
    *("cancel_at", "expires_at", "unknown_since", "unique_key", "group_key", "batch_id", "waits"),
    *("last_error", "errors", "headers"),
)
"""The columns of a live or dead job that are read."""
_MOMENT: Final = DateTime(timezone=True)
_FOUND: Final[tuple[ColumnElement[Any], ...]] = (
    literal_column("true").label("fits"),
    literal_column("false").label("is_last"),
)
"""Of each row, where only those that fit are read."""


class SearchStatements:
    """Pages, counts and single jobs."""

    def __init__(self, tables: Tables) -> None:
        self._job, self._dead = tables.job, tables.dead
        self.dead_of: Callable[[int], Executable] = cache(self._dead_of)

    # ---- live jobs --------------------------------------------------------------------------

    def live_page(self, search: Search, *, onward: bool) -> Executable:
        """Where a page of live jobs is: next_run_at, id, fits, is_last; the earliest first.

        Each lane is read from a position on, up to an equal part of a number of rows; those that
        begin first up to a page at least, as all of it may be in one of them. ``is_last`` marks the
        row at which the reading of a lane stopped: behind the first of them nothing is complete.

        Parameters: page; scan, about how many rows of all lanes are looked at; and where the page
        before stopped, if this goes *onward*: time and id.
        """
        page, scan = parameter("page", Integer), parameter("scan", Integer)
        wanted = self._wanted(search, onward=onward)
        by_head = func.row_number().over(order_by=(wanted.c.next_run_at, wanted.c.id))
        ranked = (
            select(wanted.c.queue, wanted.c.priority, by_head.label("rank"))
            .add_columns(func.count().over().label("number"))
            .cte("ranked")
        )
        most: ColumnElement[int]
        if search.terms:
            share = func.greatest(scan // ranked.c.number, literal_column(str(FEW)))
            is_first = ranked.c.rank <= scan // page
            most = case((is_first, func.greatest(page, share)), else_=share)
            is_read: ColumnElement[bool] = true()
        else:
            # Each of a page of lanes has a job before those of the lanes behind.
            most, is_read = page, ranked.c.rank <= page
        one = self._of_lane("one", ranked, search, onward=onward)
        place = func.row_number().over(order_by=one.selected_columns[:2])
        row = one.add_columns(place.label("place")).limit(most).lateral("row")
        seen = (
            select(row.c.next_run_at, row.c.id, row.c.fits, (row.c.place == most).label("is_last"))
            .select_from(ranked.join(row, true()))
            .where(is_read)
            .cte("seen")
        )
        order = seen.c.next_run_at, seen.c.id
        return select(seen).where(or_(seen.c.fits, seen.c.is_last)).order_by(*order).limit(page)

    def _wanted(self, search: Search, *, onward: bool) -> CTE:
        """The lanes in which what fits can be, each with the job that a reading begins with."""
        lanes = self._lanes()
        wanted = select(lanes.c.queue, lanes.c.priority).where(lanes_with(lanes, search))
        states = search.only("state")
        if onward or states == ("scheduled",):  # it begins behind the head of the lane
            named = wanted.cte("named")
            head = self._of_lane("head", named, search, onward=onward)
            one = head.limit(literal_column("1")).lateral("head")
            of_head = select(named, one.c.next_run_at, one.c.id)
            return of_head.select_from(named.join(one, true())).cte("wanted")
        begun = wanted.add_columns(lanes.c.next_run_at, lanes.c.id)
        return begun.where(*times_of(lanes, search)).cte("wanted")

    def _of_lane(self, name: str, lane: CTE, search: Search, *, onward: bool) -> Select[Any]:
        """The jobs of a lane, the earliest first: next_run_at, id, fits."""
        job = self._job.alias(name)
        key = job.c.next_run_at, job.c.id
        return (
            select(*key, condition(job, search).label("fits"))
            .with_hint(job, ONLY)
            .where(
                job.c.queue == lane.c.queue,
                job.c.priority == lane.c.priority,
                in_order_of_claims(job),
                *times_of(job, search),
                *_behind(key, onward),
            )
            .order_by(*key)
        )

    def live_found(self, search: Search, *, onward: bool) -> Executable:
        """As :meth:`live_page` for a search of ids or unique keys, which indexes find at once.

        Parameters: page; and time and id, if it goes *onward*.
        """
        job = self._job
        key = job.c.next_run_at, job.c.id
        return (
            select(*key, *_FOUND)
            .with_hint(job, ONLY)
            .where(condition(job, search), *_behind(key, onward))
            .order_by(*key)
            .limit(parameter("page", Integer))
        )

    def live_count(self, search: Search) -> Executable:
        """How many live jobs fit, counted up to the parameter most."""
        return self._count(self._job, search)

    @cached_property
    def live(self) -> Executable:
        """Live jobs without their args. Parameter: list ids."""
        return self._rows(self._job, self._job.c.id, with_arg=False)

    @cached_property
    def live_with_arg(self) -> Executable:
        """Live jobs. Parameter: list ids."""
        return self._rows(self._job, self._job.c.id, with_arg=True)

    def _lanes(self) -> CTE:
        """Each queue and priority that has jobs, and its first job, by one probe of the index."""
        job, following = self._job.alias("first_job"), self._job.alias("following_job")
        order = job.c.queue, job.c.priority, job.c.next_run_at, job.c.id
        first = (
            select(*order)
            .with_hint(job, ONLY)
            .where(job.c.queue >= literal_column("''"), in_order_of_claims(job))
            .order_by(*order)
            .limit(1)
            .subquery("first")
        )
        lanes = select(first).cte("lanes", recursive=True)
        lane = following.c.queue, following.c.priority
        its_order = *lane, following.c.next_run_at, following.c.id
        next_lane = (
            select(*its_order)
            .with_hint(following, ONLY)
            .where(
                following.c.queue >= lanes.c.queue,
                in_order_of_claims(following),
                tuple_(*lane) > tuple_(lanes.c.queue, lanes.c.priority),
            )
            .order_by(*its_order)
            .limit(1)
            .lateral("next_lane")
        )
        return lanes.union_all(select(next_lane).select_from(lanes.join(next_lane, true())))

    # ---- dead jobs --------------------------------------------------------------------------

    def dead_page(self, search: Search, *, onward: bool) -> Executable:
        """Where a page of dead jobs is: moved_at, id, fits, is_last; the last that died is first.

        As :meth:`live_page`, with the same parameters.
        """
        dead = self._dead
        key = dead.c.moved_at, dead.c.id
        newest_first = dead.c.moved_at.desc(), dead.c.id.desc()
        page, scan = parameter("page", Integer), parameter("scan", Integer)
        limit = func.greatest(page, scan) if search.terms else page
        seen = (
            select(
                *key,
                condition(dead, search).label("fits"),
                func.row_number().over(order_by=newest_first).label("place"),
            )
            .with_hint(dead, ONLY)
            .where(*deaths_of(dead, search), *_behind(key, onward, descending=True))
            .order_by(*newest_first)
            .limit(limit)
            .cte("seen")
        )
        is_last = seen.c.place == limit
        return (
            select(seen.c.moved_at, seen.c.id, seen.c.fits, is_last.label("is_last"))
            .where(or_(seen.c.fits, is_last))
            .order_by(seen.c.moved_at.desc(), seen.c.id.desc())
            .limit(page)
        )

    def dead_found(self, search: Search, *, onward: bool) -> Executable:
        """As :meth:`dead_page` for a search of ids, which an index finds at once."""
        dead = self._dead
        key = dead.c.moved_at, dead.c.id
        return (
            select(*key, *_FOUND)
            .with_hint(dead, ONLY)
            .where(
                condition(dead, search),
                *_behind(key, onward, descending=True),
            )
            .order_by(key[0].desc(), key[1].desc())
            .limit(parameter("page", Integer))
        )

    def dead_count(self, search: Search) -> Executable:
        """How many dead jobs fit, counted up to the parameter most."""
        return self._count(self._dead, search)

    def dead_groups(self, search: Search) -> Executable:
        """Type, kind of error, count, first and last death, of the latest ones that fit.

        Parameters: scan, which is how many of the latest dead jobs are looked at; and page.
        """
        dead = self._dead
        few = (
            select(dead.c.type, dead.c.moved_at, error_type_of(dead.c.last_error).label("kind"))
            .add_columns(condition(dead, search).label("fits"))
            .with_hint(dead, ONLY)
            .where(*deaths_of(dead, search))
            .order_by(dead.c.moved_at.desc())
            .limit(parameter("scan", Integer))
            .subquery("few")
        )
        count = func.count()
        return (
            select(
                few.c.type, few.c.kind, count, func.min(few.c.moved_at), func.max(few.c.moved_at)
            )
            .where(few.c.fits)
            .group_by(few.c.type, few.c.kind)
            .order_by(count.desc(), few.c.type, few.c.kind)
            .limit(parameter("page", Integer))
        )

    @cached_property
    def deaths(self) -> Executable:
        """How many jobs died in each of the latest periods; the newest is 0.

        Parameters: seconds (of a period), periods, and scan, the most rows to look at.
        """
        dead = self._dead
        length = parameter("seconds", Float(53))
        age = seconds(func.now() - dead.c.moved_at)
        few = (
            select(cast(func.floor(age / length), Integer).label("period"))
            .with_hint(dead, ONLY)
            .where(dead.c.moved_at > func.now() - length * parameter("periods", Integer) * SECOND)
            .order_by(dead.c.moved_at.desc())
            .limit(parameter("scan", Integer))
            .subquery("few")
        )
        return select(few.c.period, func.count()).group_by(few.c.period).order_by(few.c.period)

    @cached_property
    def dead(self) -> Executable:
        """Dead jobs without their args. Parameter: list ids, of their rows."""
        return self._rows(self._dead, self._dead.c.id, with_arg=False)

    def _dead_of(self, args: int) -> Executable:
        """The times that a job has died, the last one first; so many of them with their args.

        Parameter: list ids, of jobs.
        """
        dead = self._dead
        last_first = dead.c.moved_at.desc(), dead.c.id.desc()
        found = self._rows(dead, dead.c.job_id, with_arg=False)
        if args:
            is_read = func.row_number().over(order_by=last_first) <= literal_column(str(args))
            found = found.add_columns(case((is_read, dead.c.arg)).label("arg"))
        return found.order_by(*last_first).limit(MOST_DEATHS)

    # ---- both -------------------------------------------------------------------------------

    def _count(self, table: Table, search: Search) -> Executable:
        few = (
            select(literal_column("1").label("one"))
            .select_from(table)
            .with_hint(table, ONLY)
            .where(condition(table, search))
            .limit(parameter("most", Integer))
            .subquery("few")
        )
        return select(func.count()).select_from(few)

    def _rows(self, table: Table, id: ColumnElement[str], *, with_arg: bool) -> Select[Any]:
        # Not the application's own: a role that may read jobs need not be allowed to read those.
        names = [*_SHOWN, *(("arg",) if with_arg else ())]
        columns = [table.c[name] for name in names if name in table.c]
        ids = array_parameter("ids", Text())
        return (
            select(*columns, func.now().label("now")).with_hint(table, ONLY).where(id == any_(ids))
        )


def _behind(
    key: tuple[ColumnElement[Any], ...], onward: bool, *, descending: bool = False
) -> list[ColumnElement[bool]]:
    """Behind where the page before stopped."""
    position = tuple_(parameter("time", _MOMENT), parameter("id", Text))
    if not onward:
        return []
    return [tuple_(*key) < position if descending else tuple_(*key) > position]
