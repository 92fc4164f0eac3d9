"""Charts as SVG, drawn here: no script, no style attributes, and a text for who can't see them.

A chart has a title and a description, each of its columns says its values, and the page has the
same numbers in a table. What is written beside it is no part of the drawing, which is stretched.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup, escape

from .words import number

_WIDTH: Final = 720
_HEIGHT: Final = 120
_STEPS: Final = (2, 4, 6, 8, 10)
"""The scale of a chart ends at one of these, or at a power of ten times one."""


def stacked(
    columns: Sequence[Mapping[str, int]],
    kinds: Sequence[str],
    *,
    id: str,
    title: str,
    words: str,
    notes: Sequence[str],
) -> Markup:
    """Columns from left to right, each made of parts that stand on each other.

    Args:
        columns: Of each the height of its parts, by kind.
        kinds: From the bottom to the top; each is the name of a class.
        id: Of the drawing on its page.
        title: What it shows.
        words: What it says, in a sentence.
        notes: What each column says when it is pointed at.
    """
    top = scale_of(max((sum(column.values()) for column in columns), default=0))
    step = _WIDTH / max(len(columns), 1)
    drawn = []
    for place, (column, note) in enumerate(zip(columns, notes, strict=True)):
        x, below, parts = place * step + step * 0.08, 0.0, []
        for kind in kinds:
            if value := column.get(kind, 0):
                # What there is can be seen, beside a thousand times as much too.
                height = max(value / top * _HEIGHT, 1.5)
                below += height
                parts.append(_rect(kind, x, _HEIGHT - below, step * 0.84, height))
        drawn.append(_column(note, place, step, "".join(parts)))
    return _figure(id, title, words, [f"{top:,}", number(top // 2), "0"], drawn)


def lines(
    series: Mapping[str, Sequence[float | None]],
    *,
    id: str,
    title: str,
    words: str,
    notes: Sequence[str],
) -> Markup:
    """Durations in seconds as lines, on a scale in which each step is ten times as long.

    Args:
        series: The values of each line, by the name of its class; None where there is none.
        id, title, words, notes: As for :func:`stacked`.
    """
    known = [one for values in series.values() for one in values if one]
    lowest = math.floor(math.log10(min(known, default=0.01)))
    highest = max(math.ceil(math.log10(max(known, default=1.0))), lowest + 1)
    step = _WIDTH / max(len(notes), 1)
    drawn = [_column(note, place, step) for place, note in enumerate(notes)]
    for kind, values in series.items():
        for run in _runs(values):
            points = [
                (
                    (place + 0.5) * step,
                    (1 - (math.log10(value) - lowest) / (highest - lowest)) * _HEIGHT,
                )
                for place, value in run
            ]
            # A value by itself is a short line: a round end of a line without length is stretched.
            if len(points) == 1:
                ((x, y),) = points
                points = [(x - step * 0.4, y), (x + step * 0.4, y)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            drawn.append(
                f'<polyline class="{kind}" points="{path}" vector-effect="non-scaling-stroke"/>'
            )
    decades = [_decade(power) for power in range(highest, lowest - 1, -1)]
    return _figure(id, title, words, decades, drawn)


def share(parts: Sequence[tuple[str, int]], *, label: str) -> Markup:
    """One bar, split by kind: each a class name and a number."""
    total = sum(value for _, value in parts)
    if not total:
        return Markup('<svg class="share" viewBox="0 0 100 6" aria-hidden="true"></svg>')
    drawn, x = [], 0.0
    for kind, value in parts:
        width = value / total * 100
        if width:
            drawn.append(
                Markup('<rect class="{kind}" x="{x}" y="0" width="{w}" height="6"/>').format(
                    kind=kind, x=f"{x:.2f}", w=f"{width:.2f}"
                )
            )
        x += width
    return Markup(
        '<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" '
        'aria-label="{label}">{bars}</svg>'
    ).format(label=label, bars=Markup("").join(drawn))


def scale_of(most: int) -> int:
    """Where a scale ends that has room for so many: an even number that is easy to read."""
    power = 1
    while most > _STEPS[-1] * power:
        power *= 10
    return next(one * power for one in _STEPS if one * power >= most)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The values with their places, without gaps in between."""
    found: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value:
            found[-1].append((place, value))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _decade(power: int) -> str:
    if power >= 0:
        return f"{10**power:,} s"
    return f"{10 ** (power + 3)} ms" if power >= -3 else f"{10 ** (power + 6):g} µs"


# Of these there are hundreds on a page: they are made of numbers and names of ours, and the only
# text is escaped.
def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'
    )


def _column(note: str, place: int, step: float, inside: str = "") -> str:
    """A column with what it says when it is pointed at, wherever in its height that is."""
    area = _rect("area", place * step, 0, step, _HEIGHT)
    return f"<g><title>{escape(note)}</title>{area}{inside}</g>"


def _figure(id: str, title: str, words: str, scale: Sequence[str], drawn: Sequence[str]) -> Markup:
    """The drawing, with lines across it and beside them what they stand for, from the top down."""
    across = [
        f'<line x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" vector-effect="non-scaling-stroke"/>'
        for y in (place / (len(scale) - 1) * _HEIGHT for place in range(len(scale)))
    ]
    return Markup(
        '<div class="plot"><div class="scale" aria-hidden="true">{scale}</div>'
        '<svg class="chart" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" '
        'aria-labelledby="{id}-title {id}-words"><title id="{id}-title">{title}</title>'
        '<desc id="{id}-words">{words}</desc>{across}{drawn}</svg></div>'
    ).format(
        scale=Markup("").join(Markup("<span>{}</span>").format(one) for one in scale),
        w=_WIDTH,
        h=_HEIGHT,
        id=id,
        title=title,
        words=words,
        across=Markup("".join(across)),  # noqa: S704 - numbers
        drawn=Markup("".join(drawn)),  # noqa: S704 - its text is escaped
    )
