"""Schedules of several worker processes, of which some are killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.schedules import kill_one_each_time

if TYPE_CHECKING:
    from support.processes import Fleet


def test_each_time_is_met_once_while_workers_are_killed(fleet: Fleet) -> None:
    """Of a schedule of each second; tests/chaos has five workers, and a minute of it."""
    assert kill_one_each_time(fleet, workers=2, times=2) == []
    assert len(fleet.fire_times("tick")) >= 3
