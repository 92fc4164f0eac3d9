"""SQL that the user wrote as text: where to find it, its first word, and if it is several. Pure.

Every statement of a handler's session passes through here, so all of this takes linear time.
"""

import re
from typing import Any, Final

from sqlalchemy import DDL, TextClause, TextualSelect
from sqlalchemy.orm import FromStatement

_SKIPPED: Final = re.compile(r"(?:[\s(;]++|--[^\r\n]*+)*+")
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")


def sql_of(statement: Any) -> str | None:
    """The SQL of a statement that was written as text; None if SQLAlchemy writes it."""
    if isinstance(statement, TextClause):
        return statement.text
    if isinstance(statement, DDL):
        return statement.statement
    if isinstance(statement, TextualSelect | FromStatement):
        return sql_of(statement.element)
    return None


def first_word_at(sql: str) -> int:
    """The index of the first word, after white space, comments, parentheses and semicolons."""
    at = 0
    while True:
        skipped = _SKIPPED.match(sql, at)
        at = skipped.end() if skipped else at
        if not sql.startswith("/*", at):
            return at
        at = _behind_comment(sql, at)


def _behind_comment(sql: str, at: int) -> int:
    depth = 0  # PostgreSQL's comments nest
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def may_be_several(sql: str) -> bool:
    """Whether there may be more than one statement; a semicolon in a literal counts too."""
    return ";" in sql.rstrip("; \t\r\n")
