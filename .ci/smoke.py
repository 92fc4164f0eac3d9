"""Check an installed package: run it with its own Python, from a directory without the code.

Each check is a function named ``check_...``; add one where a file of it can be missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout


def check_the_package_is_the_installed_one() -> None:
    import sqlalchemy_bgjob

    package = SITE_PACKAGES / "sqlalchemy_bgjob"
    assert sqlalchemy_bgjob.__file__ == str(package / "__init__.py"), sqlalchemy_bgjob.__file__
    assert (package / "py.typed").is_file()


def check_the_migrations_are_inside_the_package() -> None:
    migrations = SITE_PACKAGES / "sqlalchemy_bgjob" / "alembic_migrations"
    assert (migrations / "env.py").is_file()
    assert list((migrations / "versions").glob("*.py"))


def check_nothing_else_is_installed_at_the_top() -> None:
    files = importlib.metadata.files("sqlalchemy-bgjob")
    assert files is not None
    top = {file.parts[0] for file in files if file.parts[0] != ".."}
    expected = {"sqlalchemy_bgjob", f"sqlalchemy_bgjob-{version()}.dist-info"}
    assert top == expected, top
    assert importlib.util.find_spec("alembic_migrations") is None


def check_the_scripts_tell_the_version() -> None:
    for script in ("sqlalchemy-bgjob", "bgjob"):
        assert version() in run(script, "version")
    assert version() in run(sys.executable, "-m", "sqlalchemy_bgjob", "version")


def check_the_dashboard_has_its_files() -> None:
    package = SITE_PACKAGES / "sqlalchemy_bgjob" / "_web"
    for name in ("static/app.css", "static/app.js", "static/htmx.min.js", "templates/base.html"):
        assert (package / name).is_file(), name
    from sqlalchemy_bgjob.web import dashboard

    assert callable(dashboard)


def check_it_migrates_a_database() -> None:
    from sqlalchemy import create_engine, inspect

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres

    with EmbeddedPostgres.start() as server:
        run("sqlalchemy-bgjob", "migrate", "--database-url", server.url)
        engine = create_engine(server.url)
        tables = set(inspect(engine).get_table_names())
        engine.dispose()
    assert {"bgjob_job", "bgjob_dead_job", "bgjob_worker"} <= tables, tables


def version() -> str:
    return importlib.metadata.version("sqlalchemy-bgjob")


def main() -> None:
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    for check in checks:
        check()
        print(f"ok: {check.__name__.removeprefix('check_').replace('_', ' ')}")


if __name__ == "__main__":
    main()
