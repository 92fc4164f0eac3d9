"""The command line: ``sqlalchemy-bgjob``, ``bgjob`` and ``python -m sqlalchemy_bgjob``.

It parses, calls and prints. A command is imported when it is called, and the code that it calls
when it runs: ``--help`` needs no SQLAlchemy. Results go to stdout, logs and errors to stderr.

An option comes from the command line, else from its environment variable, else from
``pyproject.toml``, see :mod:`.._process.pyproject`.

Exit codes: 0 done, or drained after one signal; 1 failed; 2 wrong usage, or the application
can't be imported; 3 the database is unreachable or refuses; 4 the schema is out of date;
128 + n after a second or third signal n.
"""

import errno
import importlib
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from .._process.exits import FAILED, OK, SIGNALLED, CommandError, leave
from .._process.pyproject import defaults
from .._version import __version__

_COMMANDS: Final = {
    "batches": ("batches", "Look at batches: how far they have come, and what follows."),
    "bench": ("bench", "Measure the queue on your own database."),
    "check": ("check", "Look whether a worker of this host beats."),
    "completion": ("config", "Print what makes a shell complete commands and options."),
    "config": ("config", "Tell with which options a command would run, and why."),
    "demo": ("demo", "Index a folder with two workers, kill one of them, and recount."),
    "dev": ("dev", "Run a file of handlers, with a database and the dashboard of its own."),
    "dlq": ("dlq", "Look at dead jobs, bring them back, or delete them."),
    "doctor": ("doctor", "Look for what is wrong with the queue's database, and what to do."),
    "enqueue": ("handlers", "Enqueue a job of TYPE with a JSON arg."),
    "grants": ("tables", "Print the least privileges for the roles of an application."),
    "handlers": ("handlers", "List the handlers of an application."),
    "import-bgjob": (
        "import_bgjob",
        "Move the jobs of the Go library bgjob into these tables.",
    ),
    "jobs": ("jobs", "Find jobs, show them, cancel them, or let them run now."),
    "migrate": ("tables", "Bring the queue's tables to this release's version."),
    "pause": ("queues", "Let no worker claim from QUEUE."),
    "pressure": ("queues", "Tell how many jobs wait in each QUEUE, and for how long."),
    "queues": ("queues", "List the queues: jobs, slots, pauses."),
    "resume": ("queues", "Let workers claim from QUEUE again."),
    "schedules": ("schedules", "Look at schedules, pause and resume them, or run one now."),
    "slots": ("queues", "Let each worker run N jobs of QUEUE at once."),
    "stats": ("fleet", "Tell how the queue is: what waits, who works, what died."),
    "top": ("top", "Watch queues, workers and running jobs, until you press q."),
    "version": ("version", "Print the versions of everything that matters."),
    "web": ("web", "Serve the dashboard."),
    "worker": ("worker", "Run the jobs of an application."),
    "workers": ("fleet", "List the workers."),
}
"""By each command's name: its module in this package, and its line in --help, for which none is
imported."""


_OUTPUT_REFUSED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of a write, which names no file: a disk is full, or what the output goes to is gone."""


class _Imported(MutableMapping[str, click.Command]):
    """The commands by name; each is imported when it is asked for."""

    def __init__(self, modules: Mapping[str, tuple[str, str]]) -> None:
        self._modules = dict(modules)

    def __getitem__(self, name: str) -> click.Command:
        module = importlib.import_module(f".{self._modules[name][0]}", __name__)
        found: click.Command = getattr(module, name.replace("-", "_"))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules  # without importing it

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError("a command is added to the table of modules")

    def __delitem__(self, name: str) -> None:
        del self._modules[name]


class _Commands(click.Group):
    """A group whose commands report a CommandError without a traceback of ours.

    It also knows in which group a command is that stands in none of its names.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            _report(error)
            return error.exit_code

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            within = [repr(f"{group} {args[0]}") for group in self._groups_with(args[0])]
            if not within:
                raise
            words = f"{error.message} Did you mean {' or '.join(within)}?"
        raise click.UsageError(words, ctx)

    def _groups_with(self, name: str) -> Iterator[str]:
        for group, command in self.commands.items():
            if isinstance(command, click.Group) and name in command.commands:
                yield group

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in sorted(_COMMANDS.items())])


@click.group(
    cls=_Commands,
    commands=_Imported(_COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sqlalchemy-bgjob")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Background jobs in PostgreSQL, for applications that use SQLAlchemy.

    Most options may also stand in the environment, as --help tells, or in the table
    [tool.sqlalchemy-bgjob] of the working directory's pyproject.toml.
    """
    ctx.default_map = defaults(cli.commands, Path(), ctx.invoked_subcommand)
    # A worker counts signals itself, as soon as its modules are imported.
    if ctx.invoked_subcommand != "worker" and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _report(error: CommandError) -> None:
    from .._process import logs

    if logs.own_stderr():
        logs.report(error.problem, exit_code=error.exit_code, traceback=error.traceback)
        return
    if error.traceback is not None:
        click.echo(error.traceback, err=True, nl=False)
    click.echo(f"Error: {error.problem}", err=True)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the scripts: runs a command and exits with its code.

    A program of one's own may call it in its main thread, with *args* such as
    ``["worker", "app:jobs", "--processes", "4"]``; they are those of the process unless given.

    Raises:
        SystemExit: The command has ended; see above for the codes.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        # What a command has done must not look undone for a name in letters that a terminal lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(arguments, standalone_mode=False, obj=arguments)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # Ctrl-C in a command that does not count signals
        code = SIGNALLED + signal.SIGINT
    except OSError as error:
        if error.errno not in _OUTPUT_REFUSED or error.filename is not None:
            raise
        _report(CommandError(FAILED, f"the output can't be written: {error.strerror}"))
        code = FAILED
    leave(code or OK)
