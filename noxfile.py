"""The commands of the project, also those of CI: ``nox -l`` lists them, ``nox -s test`` runs one.

Sessions run in the environment that nox is called from, with ``pip install -e ".[dev,test]"`` done.
Those that need other versions make an environment of their own. What follows ``--`` goes to the
command: ``nox -s core -- -k enqueue``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "test"]

OTHER_PYTHONS = ["3.12", "3.13", "3.14"]
LOWEST_POSTGRES, LOWEST_SQLALCHEMY = "14", "2.0.30"
CORE = ["-m", "core and not chaos"]
BUILD = ["build>=1.2", "hatchling>=1.27"]
NEW = "uv|virtualenv"
"""How an environment is made: in seconds; and where there is no uv, by pip in a minute."""


def pytest(
    session: nox.Session, *arguments: str, as_root: bool = False, **environment: str
) -> None:
    """Run pytest; in CI, run the few tests that failed again by themselves."""
    again = ["python", ".ci/tested.py"] if "BGJOB_CI_UNSTABLE" in os.environ else []
    sudo: list[str] = []
    if as_root and os.geteuid() != 0:
        kept = {name: os.environ.get(name, "") for name in ("PATH", "PYTEST_ADDOPTS")}
        sudo = ["sudo", "env", *(f"{name}={value}" for name, value in kept.items())]
    session.run(*again, *sudo, "pytest", *arguments, *session.posargs, env=environment)


def programs(session: nox.Session, version: str) -> str:
    """Return the folder of a PostgreSQL server's programs, fetched at the first time."""
    fetch = [sys.executable, ".ci/postgres.py", version, str(session.cache_dir)]
    found = session.run(*fetch, external=True, silent=True)
    return str(found).strip()


@nox.session
def test(session: nox.Session) -> None:
    """All tests but the slow ones, and those that need programs of the system."""
    pytest(session)


@nox.session
def core(session: nox.Session) -> None:
    """The tests that every version must pass."""
    pytest(session, *CORE)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kills, freezes and restarts; it takes many minutes."""
    pytest(session, "-m", "chaos")


@nox.session
def system(session: nox.Session) -> None:
    """Tests with PgBouncer, libfaketime and small disks, as root."""
    pytest(session, "-m", "system and not chaos", as_root=True)


@nox.session
def pooler(session: nox.Session) -> None:
    """The core tests through PgBouncer, but for what is about sessions."""
    pytest(session, *CORE, BGJOB_TEST_POOLER="1")


@nox.session
def coverage(session: nox.Session) -> None:
    """All fast tests, with the coverage of the package."""
    # The folder works round a hang of Python 3.11.
    pytest(session, "--cov", PYTHONPATH=".ci/coverage_site")


@nox.session(venv_backend=NEW)
def lowest(session: nox.Session) -> None:
    """The core tests on the lowest SQLAlchemy and PostgreSQL; it makes an environment."""
    session.install("-e", ".[dev,test]", f"sqlalchemy[asyncio]=={LOWEST_SQLALCHEMY}")
    # Two drivers, one of each kind, show what differs between releases of SQLAlchemy; what differs
    # between servers is SQL, and that is the same on every driver.
    two = "not psycopg2 and not asyncio-psycopg"
    pytest(session, *CORE, "-k", two, BGJOB_TEST_PG=programs(session, LOWEST_POSTGRES))


@nox.session(venv_backend=NEW, python=OTHER_PYTHONS)
def python(session: nox.Session) -> None:
    """Unit tests, and the core tests on one driver, on another Python; it makes an environment."""
    session.install("-e", ".[dev,test]")
    # What differs between releases of Python is threads, asyncio and annotations, and no driver.
    # "unit" is the folder, "core" the mark. What only 3.12 breaks, between 3.11 and 3.13 in full,
    # the unit tests find.
    tests = "unit" if session.python == "3.12" else "unit or core"
    # What type checkers say does not depend on the Python that runs them.
    one_driver = f"({tests}) and not psycopg2 and not asyncpg"
    pytest(session, "--ignore=tests/unit/test_typing.py", "-k", one_driver)


@nox.session
@nox.parametrize("version", ["14", "15", "16", "17", "18"], ids=["14", "15", "16", "17", "18"])
def postgres(session: nox.Session, version: str) -> None:
    """The core tests on another PostgreSQL, which is fetched: nox -s "postgres(16)"."""
    pytest(session, *CORE, BGJOB_TEST_PG=programs(session, version))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and which module imports which."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strictly; and pyright finds a type for all that is public."""
    session.run("mypy", *session.posargs)
    session.run("pyright", "--verifytypes", "sqlalchemy_bgjob", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site, in build/docs; needs pip install -e ".[docs]"."""
    # Everything is read and written anew: what was left alone would not warn again.
    strictly = ("--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env", "--write-all")
    session.run("sphinx-build", "--quiet", *strictly, "docs", "build/docs")
    pytest(session, "-n", "0", "-m", "docs", "tests/process/test_site.py")


@nox.session
def soak(session: nox.Session) -> None:
    """Every fault again and again, with its seed: nox -s soak -- --minutes 20."""
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare with other queues, or designs: nox -s bench -- compare; needs npm, takes an hour."""
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend=NEW)
def wheel(session: nox.Session) -> None:
    """Build wheel and sdist twice, byte for byte the same, and try each from another folder."""
    smoke = Path.cwd() / ".ci" / "smoke.py"
    folder = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    session.install(*BUILD)
    session.run("python", ".ci/build_twice.py", str(folder))
    session.chdir(folder)
    for pattern in ("*.whl", "*.tar.gz"):
        (built,) = folder.glob(pattern)
        session.install(f"{built}[psycopg,alembic,embedded,web]", "--force-reinstall")
        session.run("python", "-I", str(smoke))


@nox.session(venv_backend="virtualenv")
def release(session: nox.Session) -> None:
    """Make what a release publishes, in dist/ and release/: nox -s release -- v0.1.0."""
    if len(session.posargs) != 1:
        session.error("name the tag: nox -s release -- v0.1.0")
    for old in ("dist", "release"):
        shutil.rmtree(old, ignore_errors=True)
    session.install(*BUILD, "cyclonedx-bom>=7.5,<8")
    session.run("python", ".ci/release.py", *session.posargs, "release/notes.md")
    session.run("python", ".ci/build_twice.py", "dist")
    folder = Path(session.create_tmp()).resolve()
    # What comes with the wheel, and nothing else: an environment without pip.
    bare, described = folder / "bare", folder / "pyproject.toml"
    (wheel,) = Path("dist").glob("*.whl")
    version = wheel.name.split("-")[1]
    text = Path("pyproject.toml").read_text()
    described.write_text(text.replace('dynamic = ["version"]', f'version = "{version}"'))
    session.run("python", "-m", "venv", "--clear", "--without-pip", str(bare))
    session.run("python", "-m", "pip", "--python", str(bare), "install", "--quiet", str(wheel))
    session.run(
        *("cyclonedx-py", "environment", "--pyproject", str(described), "--mc-type", "library"),
        *("--output-reproducible", "--output-format", "JSON"),
        *("--output-file", "release/sbom.cdx.json", str(bare / "bin" / "python")),
    )


@nox.session
def ci(session: nox.Session) -> None:
    """Everything that CI runs, in new environments; on Debian."""
    session.run("bash", ".ci/run")
