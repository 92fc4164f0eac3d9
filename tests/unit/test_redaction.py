"""Secrets of args and headers in the dashboard: hidden, and put back where they were."""

import re
from pathlib import Path

import pytest

from sqlalchemy_bgjob._web.redaction import HIDDEN, SECRETS, Redaction

REDACTION = Redaction([*SECRETS, "date of birth"])


@pytest.mark.parametrize(
    "key", ["password", "Api-Key", "cardNumber", "CARD_NUMBER", "privateKey", "dateOfBirth"]
)
def test_a_key_hides_in_whichever_way_it_is_written(key: str) -> None:
    assert REDACTION.shown({key: "x", "n": [{key: 1}]}) == {key: HIDDEN, "n": [{key: HIDDEN}]}


def test_an_edit_keeps_what_was_hidden() -> None:
    original = {"users": [{"name": "a", "password": "A"}, {"name": "b", "password": "B"}]}
    edited = REDACTION.shown(original)
    edited["users"][1]["name"] = "c"

    restored = REDACTION.restored(edited, original)

    assert restored["users"] == [
        {"name": "a", "password": "A"},
        {"name": "c", "password": "B"},
    ]


@pytest.mark.parametrize(
    "edited",
    [
        [{"name": "b", "password": HIDDEN}],
        [{"name": "b", "password": HIDDEN}, {"name": "a", "password": HIDDEN}],
        [{"name": "b", "password": HIDDEN}, {"name": "b", "password": HIDDEN}],
        [{"name": "c", "password": HIDDEN}, {"name": "d", "password": HIDDEN}],
        [{"name": "c", "password": "C"}, {"name": "a", "password": HIDDEN}],
        [{"name": "B", "password": HIDDEN}, {"name": "c", "password": "C"}],
        {"password": HIDDEN},
        HIDDEN,
    ],
)
def test_no_secret_is_put_where_it_was_not(edited: object) -> None:
    original = [{"name": "a", "password": "A"}, {"name": "b", "password": "B"}]

    with pytest.raises(ValueError, match="whose value"):
        REDACTION.restored(edited, original)


def test_of_what_is_not_hidden_a_list_may_be_edited_at_will() -> None:
    original = [{"name": "a", "password": "A"}, 1, 2]
    swapped = [2, {"name": "c", "password": "C"}, 2]

    assert REDACTION.restored(swapped, original) == swapped
    beside = REDACTION.restored([{"name": "a", "password": HIDDEN}, 2, 2], original)
    assert beside == [{"name": "a", "password": "A"}, 2, 2]


def test_the_guide_names_each_word_that_hides() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "dashboard.md").read_text()
    named = {word.replace("_", "") for word in re.findall(r"`(\w+)`", guide)}
    assert {word.replace("_", "") for word in SECRETS} <= named
