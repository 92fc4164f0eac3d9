"""A schedule of each second, five workers, and one of them killed each second, for a minute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.processes import VARIANTS, Variant
from support.schedules import kill_one_each_time

if TYPE_CHECKING:
    from support.processes import Fleet

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[-1]], ids=str)
def test_each_second_is_met_once_for_a_minute(fleet: Fleet, variant: Variant) -> None:
    assert kill_one_each_time(fleet, workers=5, times=60) == []

    met = len(fleet.fire_times("tick"))
    crashes = max(line["crashes"] for line in fleet.journal.read("start"))
    print(
        f"{variant}: {met} seconds, each met once; 60 of 65 workers killed, {crashes} with one job"
    )
    assert met >= 60
