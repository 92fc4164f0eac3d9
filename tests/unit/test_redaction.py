"""Secrets of args and headers in the dashboard: hidden, and put back where they were."""

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
        {"password": HIDDEN},
        HIDDEN,
    ],
)
def test_no_secret_is_put_where_it_was_not(edited: object) -> None:
    original = [{"name": "a", "password": "A"}, {"name": "b", "password": "B"}]

    with pytest.raises(ValueError, match="whose value"):
        REDACTION.restored(edited, original)
