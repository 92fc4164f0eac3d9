"""The application's foreign keys to the queue's tables, which may keep or slow what ends there."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from ._names import qualified, translated


@dataclass(frozen=True, slots=True)
class ForeignKeyProblem:
    """A foreign key to our tables that blocks or slows the end of a job, or of an old batch."""

    name: str
    table: str
    """The referring table, quoted, with its schema where needed."""
    columns: tuple[str, ...]
    blocks: bool
    """Whether a row can't be deleted while another row refers to it."""
    unindexed: bool
    """Whether each deletion reads the whole referring table."""
    of_batches: bool = False
    """Whether it refers to batches, and not to jobs."""

    def __str__(self) -> str:
        columns = ", ".join(self.columns)
        kept, ends = "a job that it refers to cannot end", "every job's end"
        if self.of_batches:
            kept, ends = "no batch that it refers to is ever deleted", "every old batch's deletion"
        problems = []
        if self.blocks:
            problems.append(f"{kept}; make it ON DELETE SET NULL or ON DELETE CASCADE")
        if self.unindexed:
            problems.append(f"{ends} reads the whole table; create an index on ({columns})")
        return f"foreign key {self.name!r} of {self.table} ({columns}): {'; and '.join(problems)}"


def foreign_key_problems(
    connection: Connection, *, schema: str | None, table_prefix: str
) -> list[ForeignKeyProblem]:
    """The foreign keys to the tables of jobs, dead jobs and batches that block or lack an index."""
    schema = translated(connection, schema)
    rows = connection.execute(
        _FOREIGN_KEYS,
        {
            "job": qualified(schema, f"{table_prefix}job"),
            "dead_job": qualified(schema, f"{table_prefix}dead_job"),
            "batch": qualified(schema, f"{table_prefix}batch"),
        },
    )
    problems = (
        ForeignKeyProblem(
            row.name, row.table, tuple(row.columns), row.blocks, not row.indexed, row.of_batches
        )
        for row in rows
    )
    return [problem for problem in problems if problem.blocks or problem.unindexed]


# An index serves if it begins with the key's columns in any order, and leaves out at most nulls.
_FOREIGN_KEYS = text(
    """
    SELECT c.conname AS name,
           CAST(CAST(c.conrelid AS regclass) AS TEXT) AS "table",
           ARRAY(
               SELECT CAST(a.attname AS TEXT)
               FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
               ORDER BY k.place
           ) AS columns,
           c.confdeltype IN ('a', 'r') AS blocks,
           EXISTS (
               SELECT FROM pg_catalog.pg_index i
               WHERE i.indrelid = c.conrelid AND i.indisvalid
                 AND (CAST(string_to_array(CAST(i.indkey AS TEXT), ' ') AS smallint[]))
                     [1 : cardinality(c.conkey)] @> c.conkey
                 AND (i.indpred IS NULL
                      OR pg_get_expr(i.indpred, i.indrelid) ~ '^\\([^()]+ IS NOT NULL\\)$')
           ) AS indexed,
           c.confrelid IS NOT DISTINCT FROM to_regclass(CAST(:batch AS TEXT)) AS of_batches
    FROM pg_catalog.pg_constraint c
    WHERE c.contype = 'f' AND c.conparentid = 0
      AND c.confrelid IN (to_regclass(CAST(:job AS TEXT)), to_regclass(CAST(:dead_job AS TEXT)),
                          to_regclass(CAST(:batch AS TEXT)))
    ORDER BY 2, 1
    """
)
