"""The command line: ``sqlalchemy-bgjob``, ``bgjob`` and ``python -m sqlalchemy_bgjob``.

It parses, calls and prints. The code that it calls is imported only then: ``--help`` needs no
SQLAlchemy. Results go to stdout, logs and errors to stderr.

An option comes from the command line, else from its environment variable, else from
``pyproject.toml``, see :mod:`.._process.pyproject`.

Exit codes: 0 done, or drained after one signal; 1 failed; 2 wrong usage, or the application
can't be imported; 3 the database is unreachable or refuses; 4 the schema is out of date;
128 + n after a second or third signal n.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from .._process.exits import OK, SIGNALLED, CommandError, leave
from .._process.pyproject import defaults
from .._version import __version__
from .bench import bench
from .check import check
from .demo import demo
from .dlq import dlq
from .doctor import doctor
from .import_bgjob import import_bgjob
from .queues import pause, pressure, queues, resume, slots
from .tables import grants, migrate
from .version import version
from .web import web
from .worker import worker


class _Commands(click.Group):
    """A group whose commands report a CommandError without a traceback of ours."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            _report(error)
            return error.exit_code


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sqlalchemy-bgjob")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Background jobs in PostgreSQL, for applications that use SQLAlchemy.

    Most options may also stand in the environment, as --help tells, or in the table
    [tool.sqlalchemy-bgjob] of the working directory's pyproject.toml.
    """
    # A demo and a benchmark have a database of their own.
    of_application = {n: c for n, c in cli.commands.items() if c not in (demo, bench)}
    ctx.default_map = defaults(of_application, Path())
    # A worker counts signals itself, as soon as its modules are imported.
    if ctx.invoked_subcommand != "worker" and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


for _command in (
    *(worker, check, dlq, migrate, doctor, grants, import_bgjob),
    *(queues, pause, resume, slots, pressure),
    *(web, demo, bench, version),
):
    cli.add_command(_command)


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
    try:
        code = cli.main(arguments, standalone_mode=False, obj=arguments)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # Ctrl-C in a command that does not count signals
        code = SIGNALLED + signal.SIGINT
    leave(code or OK)
