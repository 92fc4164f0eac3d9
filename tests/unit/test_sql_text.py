"""What is read from SQL that is sent as text: pure, and in linear time."""

from __future__ import annotations

from time import process_time

import pytest

from sqlalchemy_bgjob._db.sql_text import first_word_at, may_be_several
from sqlalchemy_bgjob._worker.transaction import TransactionEnded, refuse_to_end
from sqlalchemy_bgjob._worker.writes import reads


@pytest.mark.parametrize(
    "before",
    [
        "",
        " \t\r\n",
        "-- a line\n",
        "-- a line\r",
        "--\n--\n",
        "/* a */ /* b */",
        "/**/",
        "/***/",
        "/* a\n-- b */",
        "-- a /*\n",
        "/* a /* b */ c */",
        "((",
        "( -- a\n (/* b */",
        ";; ",
    ],
)
def test_the_first_word_is_found(before: str) -> None:
    assert first_word_at(f"{before}SELECT 1") == len(before)


@pytest.mark.parametrize("sql", ["", "  ", "-- all", "/* all", "/* a /* b */", "/*/"])
def test_a_text_may_have_no_word(sql: str) -> None:
    assert first_word_at(sql) == len(sql)


@pytest.mark.parametrize(
    "sql", ["COMMIT", "end;", "abort work", "ROLLBACK", "rollback work", "prepare transaction 'x'"]
)
def test_what_ends_the_transaction_is_refused(sql: str) -> None:
    with pytest.raises(TransactionEnded):
        refuse_to_end(f"/* a */ -- b\n{sql}")


@pytest.mark.parametrize(
    "sql", ["ROLLBACK TO here", "rollback work to savepoint here", "PREPARE x AS SELECT 1", "ended"]
)
def test_what_does_not_end_the_transaction_is_not_refused(sql: str) -> None:
    refuse_to_end(f"/* a */ -- b\n{sql}")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("(SELECT 1)", True),
        ("with a as (select 1) select * from a", True),
        ("with a as (delete from b returning 1) select * from a", False),
        ("insert into a values (1)", False),
        ("-- select\nupdate a set b = 1", False),
        ("selection()", False),
    ],
)
def test_whether_a_text_only_reads(sql: str, expected: bool) -> None:
    assert reads(sql) is expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [("SELECT 1", False), ("SELECT 1 ; \n;", False), ("SELECT 1; SELECT 2", True)],
)
def test_whether_a_text_may_hold_several_statements(sql: str, expected: bool) -> None:
    assert may_be_several(sql) is expected


@pytest.mark.parametrize(
    "sql",
    [
        "/* a */" * 20_000,
        "/* a */ -- b\n" * 20_000,
        "--" * 20_000,
        "/*" * 20_000,
        "( " * 20_000,
        " " * 20_000,
        "with" + " with insertion" * 5_000,
    ],
    ids=["comments", "both", "line", "nested", "parentheses", "spaces", "with"],
)
def test_a_long_text_is_read_at_once(sql: str) -> None:
    """Less than a second of this process's own time; what is not linear takes hours."""
    began = process_time()

    refuse_to_end(f"{sql} x")
    reads(f"{sql} x")

    assert process_time() - began < 1.0
