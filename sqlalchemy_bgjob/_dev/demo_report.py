"""The output of the demo: progress, report, and what to read next."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click


@dataclass
class Report:
    """The figures of one demo."""

    files: int
    seconds: float = 0.0
    entries: int = 0
    retries: int = 0
    dead: int = 0
    recovered: int = 0
    held_by_victim: int = 0
    takeover_seconds: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def jobs(self) -> int:
        """One for each file, and one for the file that does not exist."""
        return self.files + 1

    @property
    def exactly_once(self) -> bool:
        """Whether each file has exactly one entry, the right one."""
        return not self.problems

    @property
    def succeeded(self) -> bool:
        """Whether the kill left jobs to recover, and each file was indexed exactly once."""
        return self.exactly_once and self.recovered > 0 and self.dead == 1

    def lines(self) -> Iterator[str]:
        """The figures, the problems, and the verdict in the last line."""
        takeover = self.takeover_seconds
        after = "" if takeover is None else f"  (taken over {takeover:.1f} s after the kill)"
        rows = {
            "files": f"{self.files:>8}",
            "jobs": f"{self.jobs:>8}",
            "retries": f"{self.retries:>8}",
            "dead": f"{self.dead:>8}  (1 expected: a file that does not exist)",
            "held by the killed worker": f"{self.held_by_victim:>8}",
            "recovered after the kill": f"{self.recovered:>8}{after}",
            "jobs per second": f"{self.jobs / max(self.seconds, 0.001):>8.0f}"
            f"  ({self.seconds:.1f} s, enqueuing, kill and retries included)",
        }
        for name, value in rows.items():
            yield f"{name:<26}{value}"
        for problem in self.problems[:10]:
            yield f"  {problem}"
        if len(self.problems) > 10:
            yield f"  and {len(self.problems) - 10} more"
        if self.dead != 1:
            yield f"  {self.dead} jobs are dead instead of 1"
        if not self.recovered:
            yield "  no job had to be recovered: the kill has shown nothing"
        yield f"every file exactly once: {'yes' if self.exactly_once else 'no'}"


def what_to_read_next(package: Path) -> str:
    """What to read next, with paths: a checkout has documents beside the package, a wheel none."""
    folder = package.parent
    # Not README.md: another package may have put one into site-packages.
    checkout = (folder / "docs" / "reliability.md").is_file()

    def document(name: str) -> str:
        return str(folder / name) if checkout else f"{name} in a checkout of the project"

    return f"""
what to read next:
  {package / "_dev" / "demo_app.py"}: the application whose jobs these were
  {document("README.md")}: the quick start, and what it promises
  {document("docs/tables.md")}: the tables in your own database
  {document("docs/reliability.md")}: what holds when things go wrong, fault by fault
  sqlalchemy-bgjob worker --help: how to run a worker"""


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, rich's if installed; elsewhere a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines(total).show
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
    except ImportError:
        with click.progressbar(length=total, label="jobs", file=sys.stderr) as plain:
            yield lambda done: plain.update(done - plain.pos)
        return
    columns = ("jobs", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("jobs", total=total)
        yield lambda done: bar.update(task, completed=done)


class _Lines:
    """Progress for a log: one line at most every two seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._next = total, 0.0

    def show(self, done: int) -> None:
        """Print how many jobs have ended, if the next line is due."""
        now = time.monotonic()
        if now >= self._next or done == self._total:
            self._next = now + 2.0
            click.echo(f"{done} of {self._total} jobs", err=True)
