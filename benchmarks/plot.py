"""The comparison as pictures: bars for each figure and each queue, drawn by matplotlib as SVG."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import MAIN_VARIANT
from benchmarks.targets import Medians, medians
from sqlalchemy_bgjob._bench.arena import OURS, Measurement

OURS_COLOR, OTHERS_COLOR = "#b3541e", "#9aa5b1"
INCHES: Final = (4.2, 2.6)
"""Of one panel."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of one workload.

    Attributes:
        title: What it shows, and its unit.
        workload: Its name.
        figure: The figure's name.
        form: How a value is written.
        less: Whether less is better.
    """

    title: str
    workload: str
    figure: str
    form: str = "{:,.0f}"
    less: bool = False


PLOTS: Final[Mapping[str, Sequence[Panel]]] = {
    "throughput": (
        Panel("enqueue, one job a commit (jobs/s)", "W1", "jobs_per_second"),
        Panel("enqueue, all in one transaction (jobs/s)", "W2", "jobs_per_second"),
        Panel("drain by one process (jobs/s)", "W3", "jobs_per_second"),
        Panel("drain by two processes (jobs/s)", "W4", "jobs_per_second"),
    ),
    "pick_up": (
        Panel("pick-up by an idle worker, p50 (ms)", "W5", "p50_ms", "{:.2f}", less=True),
        Panel("the same, p99 (ms)", "W5", "p99_ms", "{:.2f}", less=True),
    ),
    "many_queues": (
        Panel("100 queues, 1 job/s each: p50 (ms)", "W12", "p50_ms", "{:.2f}", less=True),
        Panel("the same, p99 (ms)", "W12", "p99_ms", "{:.2f}", less=True),
        Panel("100 idle queues (transactions/s)", "W12", "idle_per_second", "{:.1f}", less=True),
    ),
    "open_transaction": (
        Panel("drain beside an open transaction, first tenth (jobs/s)", "W7", "first_per_second"),
        Panel("the same, last tenth (jobs/s)", "W7", "last_per_second"),
    ),
}
"""The pictures, by their file's name."""


def draw(found: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Draw all pictures of what the JSON file holds; the files.

    They are the same, byte by byte, for the same figures. What was not measured is left out.
    """
    figures = medians(Measurement(**m) for m in found["measurements"])
    folder.mkdir(parents=True, exist_ok=True)
    # Text stays text; ids come from the name, and no date is written.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bgjob", "font.size": 8}):
        for name, all_panels in PLOTS.items():
            panels = [panel for panel in all_panels if values(panel, figures)]
            if not panels:
                continue
            columns = min(len(panels), 2)
            rows = -(-len(panels) // columns)
            picture = Figure((INCHES[0] * columns, INCHES[1] * rows), layout="constrained")
            for number, panel in enumerate(panels, 1):
                _bars(picture.add_subplot(rows, columns, number), panel, figures)
            path = folder / f"{name}.svg"
            picture.savefig(path, metadata={"Date": None, "Creator": None})
            yield path


def values(panel: Panel, figures: Medians) -> list[tuple[str, float]]:
    """The contestants that were measured, the best one first."""
    mine = MAIN_VARIANT.get(panel.workload, "")
    found = [
        (key.contestant, value)
        for key, value in figures.items()
        if (key.workload, key.figure) == (panel.workload, panel.figure)
        and key.variant == (mine if key.contestant == OURS else "")
    ]
    return sorted(found, key=lambda one: one[1], reverse=not panel.less)


def _bars(axes: Axes, panel: Panel, figures: Medians) -> None:
    bars = values(panel, figures)
    names, heights = [name for name, _ in bars], [value for _, value in bars]
    colors = [OURS_COLOR if name == OURS else OTHERS_COLOR for name in names]
    drawn = axes.barh(names, heights, color=colors)
    axes.bar_label(drawn, [panel.form.format(value) for value in heights], padding=3)
    axes.set_title(f"{panel.title}\n{'less' if panel.less else 'more'} is better", loc="left")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
