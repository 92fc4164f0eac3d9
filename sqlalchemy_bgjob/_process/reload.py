"""Changes of an application's Python files, for ``worker --reload``."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from .exits import USAGE, CommandError

QUIET: Final = 200
"""Milliseconds without another change after which changes are told: editors save several files."""


def changes(folders: Collection[Path]) -> Iterator[list[str]]:
    """The files that have changed, each time that some have, as text to show. It never ends.

    What is in folders such as ``.git``, ``.venv``, ``node_modules`` and ``__pycache__`` does not
    count, nor what is in those that this account may not read, such as a database's.

    Raises:
        CommandError: watchfiles is not installed.
        OSError: A folder can't be watched; at the first change that is asked for.
    """
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415 - only who asks pays for it
    except ImportError:
        raise CommandError(
            USAGE,
            "--reload needs watchfiles, which is not installed; pip install "
            '"sqlalchemy-bgjob[reload]"',
        ) from None
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of each change, too
    found = watch(
        *folders,
        watch_filter=PythonFilter(),
        step=QUIET,
        raise_interrupt=False,
        ignore_permission_denied=True,
    )
    return (sorted({_shown(path) for _, path in batch}) for batch in found)


def _shown(path: str) -> str:
    """A path as the user would write it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
