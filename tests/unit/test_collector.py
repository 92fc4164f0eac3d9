"""The garbage collector looks rarely while a worker imports, and afterwards as it did."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._process.collector import RARELY, collect_as_usual, collect_rarely

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def usual() -> Iterator[tuple[int, int, int]]:
    yield (before := gc.get_threshold())
    collect_as_usual()
    gc.set_threshold(*before)


def test_it_looks_rarely_until_all_is_imported(usual: tuple[int, int, int]) -> None:
    collect_rarely()
    assert gc.get_threshold()[:2] == RARELY[:2]

    collect_as_usual()

    assert gc.get_threshold() == usual


def test_what_the_application_has_set_stays() -> None:
    collect_rarely()
    gc.set_threshold(50_000, 20, 20)

    collect_as_usual()

    assert gc.get_threshold()[:2] == (50_000, 20)


def test_where_it_was_not_told_to_look_rarely_nothing_changes() -> None:
    gc.set_threshold(*RARELY)

    collect_as_usual()

    assert gc.get_threshold()[:2] == RARELY[:2]
