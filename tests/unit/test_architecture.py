"""What the pages about the code name exists, and no module is left out. The code is only read."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy_bgjob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

N = TypeVar("N", ast.Name, ast.Attribute)

PACKAGE = Path(sqlalchemy_bgjob.__file__).parent
ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
STATES = (ROOT / "docs" / "state_machine.md").read_text()

MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
ROWS = dict(
    re.findall(
        r"^\| (?:\*\*)?`([\w/]+(?:\.py|/))`(?:\*\*)? \| (.*) \|$", ARCHITECTURE, re.MULTILINE
    )
)
"""By the path of a module, or of a room with its slash: what the page says of it."""
FOREIGN = {"ctx.session", "ctx.lease_lost", "session.add", "pyproject.toml"}
"""What has a dot and is no name in a module of ours."""


def test_every_room_and_module_has_one_row() -> None:
    """Who adds, moves or deletes a module says so on the page."""
    written = re.findall(r"^\| (?:\*\*)?`([\w/]+(?:\.py|/))`", ARCHITECTURE, re.MULTILINE)
    rooms = {f"{Path(path).parent.as_posix()}/" for path in MODULES if "/" in path}
    modules = {path for path in MODULES if path == "__init__.py" or not is_only_docstring(path)}

    assert len(modules) > 100
    assert sorted(written) == sorted(rooms | modules)
    assert len(ROWS) == len(written)


def test_paths_lead_to_modules_and_rooms() -> None:
    """Each is written from the package on, or from the repository."""
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", ARCHITECTURE + GLOSSARY)

    assert len(paths) > 200
    assert [path for path in paths if not exists(path)] == []


def test_recipes_name_files_and_classes_that_exist() -> None:
    """A test by its name alone, wherever it is."""
    named = set(re.findall(r"`([\w/]+(?:\.(?:py|md|sql)|/))`", RECIPES))
    tests = {name for name in named if name.startswith("test_")}
    classes = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z]\w+)+)(?:\.\w+)?`", RECIPES))
    known = {name for path in MODULES for name in members(path)}

    assert len(named) > 40
    assert [name for name in tests if not [*(ROOT / "tests").rglob(name)]] == []
    assert [name for name in named - tests if not exists(name)] == []
    assert classes - known == {"TypedDict"}


def test_commands_of_recipes_choose_tests_that_exist() -> None:
    chosen = set(re.findall(r"\btest_\w+", "\n".join(re.findall(r"pytest -k .*", RECIPES))))
    assert [name for name in chosen if not [*(ROOT / "tests").rglob(f"{name}.py")]] == []


def test_dotted_names_have_one_definition() -> None:
    """``heart.Heart.fresh`` begins as the path of its module ends."""
    named = set(re.findall(r"`(\w+(?:\.\w+)+)`", ARCHITECTURE + GLOSSARY + STATES)) - FOREIGN
    ours = {name for name in named if not name.endswith(".py") and name not in statements()}
    found = {name: definitions(name) for name in ours}

    assert len(found) > 100
    assert {name: where for name, where in found.items() if len(where) != 1} == {}


def test_a_module_defines_what_its_row_names() -> None:
    """A class that has moved takes its name to another row."""
    named = [
        (path, name)
        for path, text in ROWS.items()
        if path.endswith(".py")
        for name in re.findall(r"`([A-Za-z_]\w*)`", text)
    ]

    assert len(named) > 40
    assert [(path, name) for path, name in named if name not in members(path)] == []


def test_each_step_says_where_it_happens() -> None:
    """The flows are tables whose last column holds names, numbered from 1."""
    flows = ARCHITECTURE.partition("## Three flows")[2].partition("\n## ")[0]
    steps = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", flows, re.MULTILINE)
    numbers = [int(number) for number, _ in steps]

    assert numbers.count(1) == 3
    assert all(number in (1, before + 1) for before, number in pairwise(numbers))
    assert [where for _, where in steps if not re.search(r"`\w+(\.\w+)+`", where)] == []


def test_every_statement_is_named_where_it_changes_the_state() -> None:
    """The page of the state machine leaves none out, and names none that is gone."""
    named = set(re.findall(r"`(statements\.\w+\.\w+)`", STATES))

    assert len(named) > 40
    assert named == statements()


def test_every_function_of_the_lifecycle_is_named() -> None:
    """Each public one that runs statements of the queue, on the page of the state machine."""
    room = {path: ast.parse(MODULES[path].read_text()) for path in MODULES if "_lifecycle/" in path}
    functions = {
        f"{Path(path).stem}.{node.name}"
        for path, tree in room.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if "statements" in {argument.arg for argument in node.args.args}
    }

    assert len(functions) > 20
    assert sorted(functions - set(re.findall(r"`(\w+\.\w+)`", STATES))) == []


def statements() -> set[str]:
    """Each statement as the code names it: ``statements.claim.onward``."""
    return {
        f"statements.{verb}.{name}"
        for path in MODULES
        if path.startswith("_sql/")
        for verb in [Path(path).stem]
        if verb != "__init__"
        for owner, _, name in [member.partition(".") for member in members(path)]
        if owner.endswith("Statements") and name and not name.startswith("_")
    }


def test_threads_have_the_names_that_the_page_gives_them() -> None:
    """They are what a stack dump shows."""
    named = set(re.findall(r"`(bgjob-[a-z]+)(?:-N)?`", ARCHITECTURE))
    code = "\n".join(path.read_text() for path in MODULES.values())

    assert len(named) >= 8
    assert {name for name in named if f'"{name}' not in code} == set()


def test_layers_are_those_of_the_contracts() -> None:
    """Of ``pyproject.toml``, without the rooms that are yet to come."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {it["id"]: it["layers"] for it in config["tool"]["importlinter"]["contracts"]}
    package, worker = re.findall(r"```text\n(.*?)```", ARCHITECTURE, re.DOTALL)

    assert layers(package.splitlines()) == layers(contracts["layers"])
    inner = PACKAGE / "_worker"
    assert layers(worker.split(">"), inner) == layers(contracts["worker"], inner)


def layers(lines: Iterable[str], folder: Path = PACKAGE) -> list[tuple[set[str], bool]]:
    """Of each line its rooms, as far as there are such, and whether these may import each other."""
    return [
        ({name for name in re.findall(r"\w+", line) if is_room(folder / name)}, ":" in line)
        for line in lines
    ]


def is_room(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_each_word_is_explained_once_and_says_where_it_lives() -> None:
    """A row of the glossary: the word, its meaning, a module at least, and what not to call it."""
    rows = re.findall(
        r"^\| (?!word |---)(.*?) \| (.*?) \| (.*?) \| (.*?) \|$", GLOSSARY, re.MULTILINE
    )
    words = [word for word, _, _, _ in rows]

    assert len(words) > 60
    assert len(set(words)) == len(words)
    assert [word for word, _, where, _ in rows if not re.search(r"`[\w/]+\.py`", where)] == []


def exists(path: str) -> bool:
    return any((folder / path).exists() for folder in (PACKAGE, ROOT))


def is_only_docstring(path: str) -> bool:
    """Whether a module is there for its room alone."""
    return Path(path).name == "__init__.py" and len(ast.parse(MODULES[path].read_text()).body) <= 1


def definitions(name: str) -> list[str]:
    """The modules in which a dotted name is found, whose paths end as the name begins."""
    parts = name.split(".")
    return [
        path
        for path in MODULES
        for module in [path.removesuffix(".py").removesuffix("/__init__").split("/")]
        for at in range(1, len(parts))
        if module[-at:] == parts[:at] and ".".join(parts[at:]) in members(path)
    ]


@cache
def members(path: str) -> frozenset[str]:
    """What a module defines: functions, classes, their members, what methods give to ``self``."""
    return frozenset(defined(ast.parse(MODULES[path].read_text()).body))


def defined(body: list[ast.stmt], owner: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield owner + node.name
            yield from defined(node.body, f"{owner}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield owner + node.name
            if owner:
                yield from (owner + it.attr for it in assigned(node, ast.Attribute))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from (owner + it.id for it in assigned(node, ast.Name))


def assigned(node: ast.AST, kind: type[N]) -> list[N]:
    return [it for it in ast.walk(node) if isinstance(it, kind) and isinstance(it.ctx, ast.Store)]
