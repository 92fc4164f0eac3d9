"""What a worker reads in a notification, which anybody may have written. No database."""

from __future__ import annotations

import pytest

from sqlalchemy_bgjob._worker.listener import MOST_OTHERS, _parsed
from sqlalchemy_bgjob._worker.plan.polling import Polling


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        ("new 3 mail", ("new", 3, "mail")),
        ("new 3 a queue's name", ("new", 3, "a queue's name")),
        ("new -3 mail", ("new", 0, "mail")),
        ("new three mail", ("new", 0, "mail")),
        (f"new {'9' * 400} mail", ("new", MOST_OTHERS, "mail")),
        (f"new {'9' * 7_000} mail", ("new", 0, "mail")),
        ("", ("", 0, "")),
    ],
)
def test_any_payload_can_be_read_and_wakes_a_worker(
    payload: str, read: tuple[str, int, str]
) -> None:
    found = _parsed(payload)
    polling = Polling(1.0)

    polling.wake(1_000.0, others=found[1])

    assert found == read
    assert polling.is_due(1_000.0)
