"""Where a queue is read on: nothing is walked twice, and nothing is missed for long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sqlalchemy_bgjob._drafts.validation import EARLIEST
from sqlalchemy_bgjob._worker.plan.lanes import (
    JUST_FOUND,
    REACH,
    REMEMBERED,
    REQUESTED_SHARE,
    SCAN_AT_LEAST_EVERY,
    SCAN_EVERY,
    SCAN_SHARE,
    Lanes,
    Position,
)

NOW = 1_000.0
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def looked(*priorities: int, seconds: float = 0.001, now: float = NOW, told: bool = True) -> Lanes:
    lanes = Lanes()
    lanes.head_scanned(priorities, seconds, now, told=told)
    return lanes


def test_the_first_claim_reads_from_the_head() -> None:
    assert Lanes().onward(NOW) is None


def test_after_a_full_look_an_unreached_lane_is_read_from_head() -> None:
    lanes = looked(-1, 0, 5)
    lanes.read(last := Position(0, MOMENT, "m"), NOW, found=True)

    assert lanes.onward(NOW) == (Position(-1, None, ""), last, Position(5, EARLIEST, ""))


def test_after_a_full_claim_each_lane_is_read_on() -> None:
    lanes = looked(0, 5)
    lanes.read(Position(5, MOMENT, "m"), NOW, found=True)
    lanes.read(last := Position(5, MOMENT + timedelta(seconds=1), "a"), NOW, found=True)

    assert lanes.onward(NOW) == (Position(0, None, ""), last)


def test_merged_lanes_are_read_on_from_one_time() -> None:
    lanes = Lanes(by_time=True)
    lanes.head_scanned((-1, 0, 5), 0.001, NOW)
    lanes.read(last := Position(0, MOMENT, "m"), NOW, found=True)

    assert lanes.onward(NOW) == (Position(-1, MOMENT, ""), last, Position(5, MOMENT, ""))


def test_after_a_short_claim_all_lanes_are_read_from_2_s_ago() -> None:
    lanes = looked(0, 5)
    lanes.read(None, NOW, found=False)

    assert lanes.onward(NOW) == (Position(0, None, ""), Position(5, None, ""))


def test_the_head_is_looked_at_every_second() -> None:
    lanes = looked(0)

    assert lanes.onward(NOW + SCAN_EVERY - 0.01) is not None
    assert lanes.onward(NOW + SCAN_EVERY) is None


@pytest.mark.parametrize(
    ("seconds", "told", "share"),
    [(0.01, True, SCAN_SHARE), (0.2, False, REQUESTED_SHARE), (0.5, False, REQUESTED_SHARE)],
)
def test_slow_looks_take_their_share_of_the_time(seconds: float, told: bool, share: int) -> None:
    """A small one where notifications tell what a look would find."""
    lanes = looked(0, seconds=seconds, told=told)
    lanes.read(None, NOW + seconds * share - 0.02, found=False)

    assert lanes.onward(NOW + seconds * share - 0.01) is not None
    assert lanes.onward(NOW + seconds * share) is None


def test_what_was_not_read_for_long_is_read_from_its_head() -> None:
    """From two seconds ago would leave out what was committed before."""
    lanes = looked(0, 5, seconds=0.01)
    lanes.read(Position(5, MOMENT, "m"), NOW, found=True)

    assert lanes.onward(NOW + REACH - 0.1) is not None
    assert lanes.onward(NOW + REACH) is None


def test_one_slow_look_among_others_was_slow_by_chance() -> None:
    lanes = looked(0, seconds=0.001)
    lanes.head_scanned([0], 5.0, NOW)
    assert lanes.onward(NOW + SCAN_EVERY) is None

    for _ in range(3):
        lanes.head_scanned([0], 5.0, NOW)
    assert lanes.onward(NOW + SCAN_EVERY) is not None


def test_the_slowest_look_is_repeated_all_the_same() -> None:
    assert looked(0, seconds=60.0).onward(NOW + SCAN_AT_LEAST_EVERY) is None


def test_a_requested_look_is_made_at_once_unless_looks_are_slow() -> None:
    quick, slow = looked(0, seconds=0.0001), looked(0, seconds=0.05)
    for lanes in (quick, slow):
        lanes.request_head_scan()
        assert lanes.onward(NOW + 0.9) is not None, "what is new lies ahead, most of the time"
        lanes.read(None, NOW, found=False)

    assert quick.onward(NOW + 0.002) is None
    assert slow.onward(NOW + 0.4) is not None
    assert slow.onward(NOW + 0.5) is None


def test_new_jobs_count_as_found_if_any_job_was() -> None:
    """Beside a long transaction a look takes long, and is not worth it for each new job."""
    lanes = looked(0, seconds=0.001)
    lanes.notified()
    lanes.read(None, NOW, found=True)
    assert lanes.onward(NOW + 0.1) is not None
    lanes.notified()
    lanes.read(None, NOW + JUST_FOUND / 2, found=False)
    assert lanes.onward(NOW + 0.1) is not None, "the claim before may have found it"

    assert lanes.head_scan_in(NOW + 0.1) == pytest.approx(0.001 * SCAN_SHARE - 0.1)
    assert lanes.onward(NOW + 0.001 * SCAN_SHARE) is None, "but if it was not, a look finds it"


def test_new_jobs_that_were_not_found_are_looked_for_at_the_head() -> None:
    lanes = looked(0, seconds=0.001)
    lanes.notified()
    lanes.read(None, NOW + 0.2, found=False)

    assert lanes.onward(NOW + 0.2) is None


def test_jobs_given_back_are_looked_for_whatever_is_found() -> None:
    lanes = looked(0, seconds=0.0001)
    lanes.request_head_scan()
    lanes.notified()

    lanes.read(None, NOW, found=True)

    assert lanes.onward(NOW + 0.5) is None
    lanes.head_scan_sent()
    lanes.head_scanned([0], 0.0001, NOW + 0.5)
    assert lanes.onward(NOW + 0.6) is not None


def test_a_look_answers_what_was_requested_before_it() -> None:
    lanes = looked(0)
    lanes.request_head_scan()
    lanes.read(None, NOW, found=False)
    lanes.head_scan_sent()
    lanes.head_scanned([0], 0.001, NOW + 0.1)
    lanes.read(None, NOW, found=False)

    assert lanes.onward(NOW + 0.9) is not None
    assert lanes.head_scan_in(NOW + 0.9) == float("inf")


def test_a_lane_without_jobs_is_read_for_a_minute_more() -> None:
    """Most are empty now and then; one that is not read would wait for the next look."""
    lanes = looked(0, 5)
    lanes.head_scanned([0], 0.001, NOW + 1.0)
    assert [p.priority for p in lanes.onward(NOW + 1.0) or ()] == [0, 5]

    lanes.head_scanned([0], 0.001, NOW + REMEMBERED)
    assert [p.priority for p in lanes.onward(NOW + REMEMBERED) or ()] == [0]


def test_where_others_may_be_first_a_cheap_scan_spares_a_look() -> None:
    """Who reads on and finds nothing, as another worker was quicker, would scan the head next."""
    quick, slow = looked(0, seconds=0.0001), looked(0, seconds=0.02)

    for lanes in (quick, slow):
        assert lanes.onward(NOW + 0.01, contended=True) is not None, "it was just scanned"
    assert quick.onward(NOW + 0.06) is not None
    assert quick.onward(NOW + 0.06, contended=True) is None
    assert slow.onward(NOW + 0.9, contended=True) is not None, "the job would wait for the scan"


@pytest.mark.parametrize(
    ("tell", "follows"),
    [(Lanes.notified, True), (Lanes.request_head_scan, True), (lambda _: None, False)],
)
def test_it_is_known_whether_a_scan_follows_what_reads_on(tell: Any, *, follows: bool) -> None:
    lanes = looked(0, seconds=0.001)
    tell(lanes)

    foretold = lanes.is_scanned_next(NOW + 0.2)
    lanes.read(None, NOW + 0.2, found=False)

    assert foretold is follows
    assert (lanes.head_scan_in(NOW + 0.2) == 0.0) is follows
    assert not looked(0, seconds=0.1).is_scanned_next(NOW + 0.2), "it is not allowed yet"
