"""Nothing that stands in a row is ever run, and nothing secret is ever told."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sqlalchemy_bgjob
from sqlalchemy_bgjob import enqueue
from support import wait_until
from support.processes import ONE

if TYPE_CHECKING:
    from sqlalchemy_bgjob import Context
    from support.processes import Fleet
    from support.running import Workbench

PACKAGE = Path(sqlalchemy_bgjob.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
CANARY = "canary-9b3e"


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {name.name.partition(".")[0] for name in names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
    return found


def called(tree: ast.AST) -> set[str]:
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_module_can_make_code_of_data(source: Path) -> None:
    tree = ast.parse(source.read_text())
    assert not imported(tree) & {"pickle", "marshal", "shelve", "dill", "jsonpickle", "yaml"}
    assert not called(tree) & {"eval", "exec", "compile", "__import__"}


def test_modules_are_imported_only_where_a_user_names_them() -> None:
    """The package's own lazy names, APP and ``--import``; no other module even knows how."""

    def containing(words: str) -> set[str]:
        return {
            source.relative_to(PACKAGE).as_posix()
            for source in SOURCES
            if words in source.read_text()
        }

    by_name = containing("import import_module") | containing("importlib.import_module")
    assert by_name == {"__init__.py", "_process/loader.py", "cli/__init__.py"}
    assert containing(" loader.import_module(") == {"_process/application.py", "cli/handlers.py"}


def test_session_locks_are_never_taken() -> None:
    """Behind a pooler they would stay with whoever gets the session next."""
    taken = {source.name for source in SOURCES if "pg_advisory_lock" in source.read_text()}
    assert taken == {"demo.py"}, "the demo holds up its own workers, and connects directly"


@pytest.mark.core
def test_a_type_that_looks_like_code_is_an_unknown_type(bench: Workbench) -> None:
    names = ["os.system", "subprocess:run", "__import__('antigravity')", "antigravity.fly", "this"]
    insert = "INSERT INTO bgjob_job (id, queue, type, arg) VALUES (:name, 'default', :name, :arg)"
    for name in names:
        bench.sql(insert, name=name, arg=b'{"py/object": "antigravity.X", "__type__": "os.system"}')
    bench.handler("known", lambda *_: None)
    before = set(sys.modules)

    bench.run(unknown_type_grace=0.0)

    assert {bench.dead(name).last_error.partition(":")[0] for name in names} == {"UnknownType"}
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


@pytest.mark.core
def test_what_looks_like_an_object_stays_plain_data(bench: Workbench) -> None:
    seen: list[Any] = []
    arg = {"py/object": "os.system", "__type__": "x", "$ref": "y", "__reduce__": ["os", "system"]}

    @bench.jobs.handler("look", session=False)
    def look(ctx: Context[Any], value: Any) -> None:
        seen.append(value)

    enqueue(bench.outside, look, arg)
    bench.run()
    assert seen == [arg]


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_secrets_are_in_no_log_and_no_row(fleet: Fleet) -> None:
    """Args, parameters of statements, DETAILs and the password, with all loggers at DEBUG."""
    url = fleet.engine.url.set(password=f"password-{CANARY}")
    process = fleet.start(url=url.render_as_string(hide_password=False), debug=True)
    for leak in ("parameters", "constraint", "cast", "cause"):
        enqueue(fleet.engine, fleet.app.leak, {"how": leak, "secret": CANARY}, id=leak)
    fleet.wait_until_done()
    fleet.scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name LIKE 'bgjob/%'"
    )
    wait_until(lambda: "interrupted" in process.log, what="word of the lost connections")

    rows = fleet.rows("SELECT job_id, last_error FROM bgjob_dead_job ORDER BY job_id")
    assert [row.job_id for row in rows] == ["cast", "cause", "constraint", "parameters"]
    told = {row.job_id: row.last_error for row in rows}
    assert "DataError" in told["cast"]
    assert "IntegrityError" in told["constraint"]
    assert CANARY not in str(told)
    assert CANARY not in process.log
    assert CANARY not in fleet.journal.path.read_text()
