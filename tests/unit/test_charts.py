"""Charts of the dashboard: what is drawn where, and what is said of it."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from sqlalchemy_bgjob._web.charts import lines, scale_of, stacked
from sqlalchemy_bgjob._web.words import brief

NAMED = {"id": "x", "title": "Runs & <ends>", "words": "In all 5."}


def svg(drawn: str) -> ET.Element:
    """The drawing within its frame, which is well-formed."""
    found = re.search(r"<svg.*</svg>", drawn)
    assert found is not None
    return ET.fromstring(found[0])


@pytest.mark.parametrize(
    ("most", "end"), [(0, 2), (2, 2), (3, 4), (10, 10), (11, 20), (95, 100), (101, 200), (700, 800)]
)
def test_a_scale_ends_where_it_is_easy_to_read(most: int, end: int) -> None:
    assert scale_of(most) == end


def test_parts_stand_on_each_other_from_the_bottom() -> None:
    drawn = stacked(
        [{"dead": 1, "completed": 3}, {}], ["completed", "dead"], notes=["first", "<none>"], **NAMED
    )

    columns = svg(drawn).findall("g")
    assert [column.findtext("title") for column in columns] == ["first", "<none>"]
    _, below, above = columns[0].findall("rect")
    assert (below.get("class"), below.get("y"), below.get("height")) == (
        "completed",
        "30.00",
        "90.00",
    )
    assert (above.get("class"), above.get("y"), above.get("height")) == ("dead", "0.00", "30.00")
    assert len(columns[1].findall("rect")) == 1
    assert re.findall(r"<span>(.*?)</span>", drawn) == ["4", "2", "0"]


def test_what_is_drawn_has_a_title_and_a_description() -> None:
    root = svg(stacked([{}], ["dead"], notes=["none"], **NAMED))

    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "x-title x-words")
    assert (root.findtext("title"), root.findtext("desc")) == ("Runs & <ends>", "In all 5.")
    assert not [one for one in root.iter() if one.get("style")]


def test_durations_stand_on_a_scale_of_tens_with_gaps() -> None:
    drawn = lines({"p50": [0.01, 0.1, None, 1.0]}, notes=["a", "b", "c", "d"], **NAMED)

    first, second = (one.get("points", "").split() for one in svg(drawn).findall("polyline"))
    assert [point.partition(",")[2] for point in first] == ["120.0", "60.0"]
    assert [point.partition(",")[2] for point in second] == ["0.0", "0.0"]  # it stands alone
    assert re.findall(r"<span>(.*?)</span>", drawn) == ["1 s", "100 ms", "10 ms"]


def test_nothing_measured_is_no_line() -> None:
    root = svg(lines({"p50": [None, None]}, notes=["a", "b"], **NAMED))
    assert root.findall("polyline") == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\N{EN DASH}"),
        (-1.0, "0 s"),
        (0.00008, "80 µs"),
        (0.0034, "3.4 ms"),
        (0.12, "120 ms"),
        (2.5, "2.5 s"),
        (9.97, "10.0 s"),
        (200.0, "3 min"),
    ],
)
def test_short_durations_are_told_briefly(seconds: float | None, words: str) -> None:
    assert brief(seconds) == words
