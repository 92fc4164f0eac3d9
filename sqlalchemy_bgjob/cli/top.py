"""``top``: what moves, on a screen that is drawn again and again until q is pressed."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from .._process.exits import OK, USAGE, CommandError
from .on_tables import read, read_often, tables_options
from .options import option
from .output import counted, moment, print_table, shown
from .param_types import Seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from rich.console import Console, RenderableType
    from sqlalchemy import Connection

    from .._inspect.glance import Glance, Rates
    from .._process.mailbox import Mailbox
    from ..bgjob import BGJob

_FRAME: Final = 2
"""Lines of a screen that are no section's: the head, and one that is left empty."""
_OF_SECTION: Final = 4
"""Lines of a section that are no rows: its title, the names, what is left out, an empty one."""


@click.command()
@tables_options
@option("--interval", type=Seconds(), default=2.0, help="Seconds from one look to the next.")
@click.option("--once", is_flag=True, help="Look once, and print it; it needs no terminal.")
@click.pass_context
def top(ctx: click.Context, /, interval: float, once: bool, **where: Any) -> int:
    """Watch queues, workers and running jobs, until you press q.

    Space looks again at once. Each look is one short transaction that changes nothing. Jobs that
    came in and went out are counted by the server's statistics, whatever queue they are of, and one
    that is queued again counts as neither. A queue's growth is the change of its depth a second,
    unless it has too many jobs to be counted.

    It needs pip install "sqlalchemy-bgjob[cli]"; --once does not.
    """
    if not 0.1 <= interval <= 86_400:
        raise CommandError(USAGE, f"--interval {interval:g} is not between 0.1 s and a day")
    if once:
        _print(read(ctx, where, _look))
        return OK
    console = _console()
    with suppress(KeyboardInterrupt), _screen(console) as screen:
        read_often(ctx, where, _look, lambda look: screen.watch(look, interval))
    return OK


def _look(connection: "Connection", jobs: "BGJob[Any, Any]") -> "Glance":
    from .._inspect.glance import glance
    from .._sql import statements_of

    return glance(connection, jobs.models, statements_of(jobs.models))


def _console() -> "Console":
    """The terminal.

    Raises:
        CommandError: There is none that can be drawn on.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError(
            USAGE, "top needs a terminal to draw on; use `stats --json`, or `top --once`"
        )
    if sys.platform == "win32":
        raise CommandError(USAGE, "top draws on Linux and macOS only; use `top --once`")
    try:
        from rich.console import Console
    except ImportError:
        raise CommandError(
            USAGE,
            'top needs rich, which is not installed; pip install "sqlalchemy-bgjob[cli]", or use '
            "`top --once`",
        ) from None
    console = Console()
    if console.is_dumb_terminal:
        raise CommandError(
            USAGE,
            f"a terminal of type {os.environ.get('TERM', '')!r} can't be drawn on; use "
            f"`top --once`, or set TERM",
        )
    return console


# ---- what there is to see -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its title."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()


def headline(seen: "Glance", rates: "Rates | None") -> str:
    """What all queues together come to, in a line."""
    due, running = sum(it.due for it in seen.queues), sum(it.running for it in seen.queues)
    more = "+" if any(it.stopped for it in seen.queues) else ""
    speed = f", {rates.arrived:,.1f}/s in, {rates.left:,.1f}/s out" if rates else ""
    return f"{moment(seen.now)}  {due:,}{more} due, {running:,} running{speed}"


def sections(seen: "Glance", rates: "Rates | None") -> list[Section]:
    """The tables of queues, workers and running jobs."""
    growth = rates.growth if rates else {}
    queues = [
        (
            *(one.queue, f"{one.due:,}{'+' if one.stopped else ''}", f"{one.scheduled:,}"),
            *(f"{one.running:,}", f"{one.slots:,}", f"{one.workers:,}", f"{one.oldest_age:,.1f}"),
            f"{growth[one.queue]:+,.1f}" if one.queue in growth else "",
            "paused" if one.paused else "" if one.workers else "no worker",
        )
        for one in seen.queues
    ]
    workers = [
        (
            *(str(one.id), one.hostname, str(one.pid), "alive" if one.alive else "lost"),
            *(f"{one.running:,}", f"{sum(one.queues.values()):,}", f"{one.silent_for:,.1f}"),
            ", ".join(f"{queue}:{slots}" for queue, slots in sorted(one.queues.items())),
        )
        for one in seen.workers
    ]
    running = [
        (
            *(one.id, one.type, one.queue, str(one.attempt), str(one.claimed_by or "")),
            f"{(one.now - one.updated_at).total_seconds():,.1f}",
        )
        for one in seen.running
    ]
    alive = sum(one.alive for one in seen.workers)
    return [
        Section(
            counted(len(queues), "queue"),
            ("queue", "due", "later", "running", "slots", "workers", "oldest s", "growth/s", ""),
            queues,
            ("due", "later", "running", "slots", "workers", "oldest s", "growth/s"),
        ),
        Section(
            f"{counted(alive, 'worker')} alive",
            ("id", "host", "pid", "state", "running", "slots", "silent s", "queues"),
            workers,
            ("id", "pid", "running", "slots", "silent s"),
        ),
        Section(
            "running jobs",
            ("id", "type", "queue", "attempt", "worker", "claimed s"),
            running,
            ("attempt", "worker", "claimed s"),
        ),
    ]


def fitting(lengths: Sequence[int], room: int) -> list[int]:
    """How many rows of each section fit: each its share, and what one leaves to the others."""
    given = [0] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    for count, place in enumerate(order):
        given[place] = max(0, min(lengths[place], room // (len(order) - count)))
        room -= given[place]
    return given


def _print(seen: "Glance") -> None:
    click.echo(headline(seen, None))
    for one in sections(seen, None):
        click.echo(f"\n{one.title}")
        print_table(one.head, one.rows, numbers=one.numbers)


# ---- the screen ---------------------------------------------------------------------------------


class _Screen:
    """Draws what is seen, and hears keys and changes of the window's size."""

    def __init__(
        self, console: "Console", events: "Mailbox[str]", hear: "Callable[[bool], None]"
    ) -> None:
        from rich.live import Live

        self._console, self._events, self._hear = console, events, hear
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def watch(self, look: "Callable[[], Glance]", interval: float) -> None:
        """Look and draw until somebody has enough."""
        from sqlalchemy.exc import DBAPIError

        from .._db.errors import database_message
        from .._inspect.glance import rates

        before, seen, found = None, look(), None
        problem = ""
        with self._live:
            while self._show(seen, found, problem, interval):
                before = seen
                try:
                    seen = look()
                except (DBAPIError, OSError) as error:  # it may be back at the next look
                    problem = f"the database refuses: {database_message(error)}; trying again"
                    continue
                problem, found = "", rates(before, seen) or found

    def _show(self, seen: "Glance", found: "Rates | None", problem: str, interval: float) -> bool:
        """Draw until the next look is due; whether there is to be another one."""
        until = time.monotonic() + interval
        while True:
            self._live.update(self._drawn(seen, found, problem), refresh=True)
            match self._events.get(until - time.monotonic()):
                case None:
                    return True
                case "suspended":
                    self._suspend()
                case "key":
                    keys = os.read(sys.stdin.fileno(), 64)
                    if not keys or b"q" in keys.lower():
                        return False
                    if b" " in keys:
                        return True

    def _suspend(self) -> None:
        """Leave the terminal to the shell, until that lets this process go on."""
        self._live.stop()
        self._hear(False)
        # Not SIGSTOP: the kernel ignores this one where no shell could let the process go on.
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._hear(True)
        self._live.start()

    def _drawn(self, seen: "Glance", found: "Rates | None", problem: str) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        first = shown(problem) if problem else f"{headline(seen, found)}  (q quits)"
        style = "bold red" if problem else "bold"
        parts: list[RenderableType] = [Text(first, style, no_wrap=True, overflow="ellipsis")]
        there = sections(seen, found)
        room = self._console.size.height - _FRAME - _OF_SECTION * len(there)
        counts = fitting([len(one.rows) for one in there], room)
        for one, count in zip(there, counts, strict=True):
            table = Table(box=None, pad_edge=False, header_style="bold dim")
            for name in one.head:
                justify: Any = "right" if name in one.numbers else "left"
                table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
            for row in one.rows[:count]:
                table.add_row(*(Text(shown(cell)) for cell in row))
            left = len(one.rows) - count
            parts += [Text(), Text(one.title, style="bold cyan"), table]
            if left:
                parts.append(Text(f"and {left:,} more", style="dim"))
        return Group(*parts)


@contextmanager
def _screen(console: "Console") -> Iterator[_Screen]:
    """The terminal gives each key at once, and is as it was afterwards."""
    import termios
    import tty

    from .._process.mailbox import Mailbox

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    events: Mailbox[str] = Mailbox()
    events.watch(keyboard, "key")

    def hear(each_key: bool) -> None:
        if each_key:
            tty.setcbreak(keyboard)
        else:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

    obeyed = {
        signal.SIGWINCH: lambda *_: events.put("resized"),
        signal.SIGTSTP: lambda *_: events.put("suspended"),
        signal.SIGINT: _leave,
        signal.SIGTERM: _leave,
        signal.SIGQUIT: _leave,
    }
    handlers = {number: signal.signal(number, handler) for number, handler in obeyed.items()}
    try:
        hear(True)
        with events:
            yield _Screen(console, events, hear)
    finally:
        hear(False)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, frame: "FrameType | None") -> NoReturn:
    """End it at once. Python's own handler is one that asyncio replaces: by a wait for the loop."""
    raise KeyboardInterrupt
