"""The grammar of searches: what its words mean, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_bgjob._sql.search_terms import MAX_TERMS, Search, SearchError, Term, parse


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("state:running", [Term("state", ("running",))]),
        ("state:queued", [Term("state", ("due",))]),
        ("queue:mail,images", [Term("queue", ("mail", "images"))]),
        ("-type:report*", [Term("type", ("report*",), negated=True)]),
        ("priority:>5 attempt:0", [Term("priority", (">5",)), Term("attempt", ("0",))]),
        ("arg.user.id:42", [Term("arg", ("42",), path=("user", "id"))]),
        ("arg.userId:42", [Term("arg", ("42",), path=("userId",))]),
        ('error:"connection refused"', [Term("error", ("connection refused",))]),
        ('error:"a, b",c', [Term("error", ("a, b", "c"))]),
        ('key:"sync:7"', [Term("key", ("sync:7",))]),
        ("  since:1h   order-7 ", [Term("since", ("1h",)), Term("", ("order-7",))]),
        ("-order-7", [Term("", ("order-7",), negated=True)]),
        ("ID:x", [Term("id", ("x",))]),
        ("id:a/b.c", [Term("id", ("a/b.c",))]),
    ],
)
def test_each_word_has_its_meaning(text: str, terms: list[Term]) -> None:
    assert parse(text) == Search(tuple(terms))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stat:running", "did you mean 'state'"),
        ("state:runing", "did you mean 'running'"),
        ("priority:high", "no number"),
        ("since:yesterday", "no duration"),
        ("worker:web-1", "no id of a worker"),
        ("arg:42", "where in the arg"),
        ("arg..x:42", "where in the arg"),
        ("queue:", "needs a value"),
        ("-", "needs a value"),
        ('error:"timed out', "no partner"),
        ("error:\x00", "not printable"),
        ("x" * 1_001, "at most 1000 characters"),
        ("a " * (MAX_TERMS + 1), "at most 20 terms"),
        ("id:" + ",".join("abc"[n % 3] for n in range(101)), "at most 100 values"),
        ("since:999999999w", "100 years"),
    ],
)
def test_what_is_no_search_is_told(text: str, words: str) -> None:
    with pytest.raises(SearchError, match=words):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_search_or_refused(text: str) -> None:
    """And what a search is written as is that search again."""
    try:
        search = parse(text)
    except SearchError:
        return
    assert parse(str(search)) == search


def test_a_bare_word_and_sole_values_are_found() -> None:
    assert parse("order-7").bare_word == "order-7"
    assert parse("order-7 queue:mail").bare_word is None
    assert parse("-order-7").bare_word is None
    assert parse("id:a,b").only("id") == ("a", "b")
    assert parse("id:a*").only("id") is None
    assert parse("-id:a").only("id") is None
    assert str(parse("state:dead queue:mail").without("state")) == "queue:mail"


def test_a_quoted_word_with_a_minus_stays_what_it_is() -> None:
    search = parse('"-foo" state:due')

    assert parse(str(search)) == search
