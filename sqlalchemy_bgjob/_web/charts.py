"""Charts as SVG, drawn here: no script, no style attributes, and a text for who can't see them."""

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from .words import number

_WIDTH: Final = 720
_HEIGHT: Final = 120


def bars(values: Sequence[int], *, label: str, titles: Sequence[str]) -> Markup:
    """Bars from left to right.

    Args:
        values: Their heights.
        label: What the chart says, in a sentence.
        titles: What each bar stands for.
    """
    top = max([*values, 1])
    step = _WIDTH / max(len(values), 1)
    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" '
            'aria-label="{label}">'
        ).format(w=_WIDTH, h=_HEIGHT, label=label)
    ]
    for place, (value, title) in enumerate(zip(values, titles, strict=True)):
        height = value / top * (_HEIGHT - 4)
        parts.append(
            Markup(
                '<g><title>{title}: {value}</title><rect class="slot" x="{x}" y="0" width="{w}" '
                'height="{all}"/><rect class="bar" x="{x}" y="{y}" width="{w}" height="{height}"/>'
                "</g>"
            ).format(
                title=title,
                value=number(value),
                x=f"{place * step + 1:.2f}",
                w=f"{max(step - 2, 1):.2f}",
                y=f"{_HEIGHT - height:.2f}",
                height=f"{max(height, 1.5 if value else 0):.2f}",
                all=_HEIGHT,
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


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
    ).format(label=escape(label), bars=Markup("").join(drawn))
