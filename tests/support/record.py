"""The table's own record of what was done to each job, kept by a trigger, and its rules.

The journal tells what workers saw; this tells what they did, also if nobody was told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

KEEP_RECORD = (
    """
    CREATE TABLE record (
      n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      did text, id text,
      lease_before bigint, worker_before bigint,
      lease bigint, worker bigint,
      handed_back boolean,
      asked boolean, key_before text, key text,
      late boolean
    )
    """,
    """
    CREATE FUNCTION keep_record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT AS $$
    BEGIN
      INSERT INTO record
        (did, id, lease_before, worker_before, lease, worker, handed_back, asked, key_before, key,
         late)
      VALUES (TG_OP, coalesce(NEW.id, OLD.id),
              OLD.lease, OLD.claimed_by, NEW.lease, NEW.claimed_by,
              -- A rescue counts a crash.
              coalesce(OLD.claimed_by IS NOT NULL AND NEW.claimed_by IS NULL
                       AND NEW.crashes = OLD.crashes, false),
              -- Tables of version 1 have no such columns.
              coalesce(TG_OP = 'UPDATE' AND to_jsonb(OLD) ->> 'cancel_at' IS NULL
                       AND to_jsonb(NEW) ->> 'cancel_at' IS NOT NULL, false),
              to_jsonb(OLD) ->> 'unique_key', to_jsonb(NEW) ->> 'unique_key',
              coalesce(OLD.claimed_by IS NULL AND NEW.claimed_by IS NOT NULL
                       AND CAST(to_jsonb(NEW) ->> 'expires_at' AS timestamptz) < NEW.updated_at,
                       false));
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER keep_record AFTER INSERT OR UPDATE OR DELETE ON bgjob_job
    FOR EACH ROW EXECUTE FUNCTION keep_record()
    """,
)
READ_RECORD = (
    "SELECT did, id, lease_before, worker_before, lease, worker, handed_back, asked,"
    " key_before, key, late FROM record ORDER BY n"
)


class Change(NamedTuple):
    """One change of one row that was committed."""

    did: str
    id: str
    lease_before: int | None = None
    worker_before: int | None = None
    lease: int | None = None
    worker: int | None = None
    handed_back: bool = False
    asked: bool = False
    key_before: str | None = None
    key: str | None = None
    late: bool = False
    """Whether it is a claim of a job that had expired."""


def record_problems(record: Iterable[Change], *, cancelled: bool = False) -> list[str]:
    """What was done to rows and must not be, in words.

    * A job changes hands without a new lease, or its lease shrinks (I7).
    * A job is inserted with a lease that its id has had before.
    * A job goes from one worker to another, without having been given back between.
    * A job is deleted that nobody has claimed, unless jobs were cancelled.
    * Two jobs have one unique key, a job gets one after its INSERT, or one that was claimed keeps
      one of scope queued.
    """
    problems: list[str] = []
    holders: dict[str, str] = {}
    highest: dict[str, int] = {}
    for change in record:
        before, after = change.lease_before or 0, change.lease or 0
        told = f"{change.id}: lease {before} of {change.worker_before}"
        match change.did:
            case "INSERT" if after <= highest.get(change.id, 0):
                problems.append(f"{change.id}: inserted with lease {after}, which is not new")
            case "UPDATE" if after < before:
                problems.append(f"{told}: became {after}")
            case "UPDATE" if change.worker != change.worker_before:
                if after == before:
                    problems.append(f"{told}: went to {change.worker} without a new lease")
                if change.worker is not None and change.worker_before is not None:
                    problems.append(f"{told}: was taken by {change.worker}")
            case "DELETE" if change.worker_before is None and not cancelled:
                problems.append(f"{told}: deleted, and nobody had claimed it")
            case _:
                pass
        problems += _problems_of_key(change, told, holders)
        highest[change.id] = max(highest.get(change.id, 0), before, after)
    return problems


def _problems_of_key(change: Change, told: str, holders: dict[str, str]) -> Iterable[str]:
    before, after = change.key_before, change.key
    if change.did == "UPDATE" and after is not None:
        if after != before:
            yield f"{told}: got the key {after!r}"
        if after.startswith("q:") and change.worker is not None:
            yield f"{told}: was claimed, and has kept the key {after!r}"
    if before is not None and before != after:
        holders.pop(before, None)
    if after is not None and holders.setdefault(after, change.id) != change.id:
        yield f"{change.id}: has the key {after!r}, which {holders[after]} has"
