"""Which object of the application is meant, and what is said if there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._process import runners
from sqlalchemy_bgjob._process.application import load_jobs
from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._process.loader import load
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Command


@pytest.mark.parametrize(
    ("target", "expected"),
    [("shopmain:queue", 7), ("shopapp.jobs:app.jobs", 3), ("shopmain:make()", 8)],
)
def test_an_object_is_found_by_module_and_name(
    modules: Path, target: str, expected: object
) -> None:
    assert load(target, modules) == expected


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("shopmain", "'shopmain' is not module:object; write it like app:jobs"),
        ("shopmain:", "is not module:object"),
        (":queue", "is not module:object"),
        ("shopmain:que ue", "is not module:object, module:object.attribute or module:factory()"),
        ("shopmain.py:queue", "names a file; write the module's name: shopmain:queue"),
        ("shopapp/jobs.py", "write the module's name: shopapp.jobs:jobs"),
        ("shopmian:queue", "no module 'shopmian' in"),
        ("shopmian:queue", "did you mean 'shopmain'"),
        ("shopapp.job:app", "no module 'shopapp.job' in package 'shopapp'; did you mean 'jobs'?"),
        ("shopmain.sub:app", "no module 'shopmain.sub'"),
        ("shopmain:queu", "module 'shopmain' has no 'queu'; did you mean 'queue'?"),
        ("shopapp.jobs:app.job", "of module 'shopapp.jobs' has no 'job'; did you mean 'jobs'?"),
        ("shopmain:zzz", "module 'shopmain' has no 'zzz'"),
        ("shopmain:queue()", "is not callable; write shopmain:queue without ()"),
    ],
)
def test_a_wrong_name_says_what_was_tried_and_what_is_close(
    modules: Path, target: str, words: str
) -> None:
    with pytest.raises(CommandError) as raised:
        load(target, modules)

    assert words in str(raised.value)
    assert raised.value.exit_code == 2
    assert raised.value.traceback is None, "nothing of the application's has failed"


@pytest.mark.parametrize(
    ("target", "words", "frame"),
    [
        ("shopbroken:x", "importing 'shopbroken' failed: ZeroDivisionError", "in work"),
        ("shopneeds:x", "No module named 'nosuchlibrary'", "import nosuchlibrary"),
        ("shopmain:fails()", "calling 'fails' of module 'shopmain' failed: V", "in fails"),
        ("shopmain:holder.broken", "reading 'broken'", "in broken"),
        ("shopexits:x", "SystemExit: no settings", "shopexits.py"),
    ],
)
def test_a_traceback_begins_in_the_application(
    modules: Path, target: str, words: str, frame: str
) -> None:
    with pytest.raises(CommandError) as raised:
        load(target, modules)

    assert words in str(raised.value)
    trace = raised.value.traceback
    assert trace is not None
    assert frame in trace
    assert "_loader.py" not in trace
    assert "importlib" not in trace


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("support.cli_app:asgi", "'Asgi', not BGJob; did you mean support.cli_app:both or"),
        ("support.cli_app:flask_like", "did you mean support.cli_app:flask_like.jobs or"),
        ("support.cli_app:make_later()", "is a coroutine function; name a plain function"),
        ("support.commands:TESTS", "name the object that BGJob(...) has made, such as app:jobs"),
        ("support.cli_app:make_functions", "if it makes one, write support.cli_app:make_functions"),
        ("support.cli_app:Base", "is of type 'DeclarativeAttributeIntercept', not BGJob"),
        ("support:cli_app", "did you mean support:cli_app.both or support:cli_app.coroutines"),
        ("support.cli_app:nothing", "no handler is registered"),
    ],
)
def test_what_is_no_bgjob_is_refused(target: str, words: str) -> None:
    with pytest.raises(CommandError) as raised:
        runners.make_runner(runners.WorkerOptions(app=target, database_url="postgresql://x/y"))

    assert words in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_bgjob_in_another_module_of_the_package_is_named(modules: Path) -> None:
    """As beside a factory: ``shop:create_app()`` gives the application, and not the queue."""
    package = modules / "shoppackage"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\nfrom . import extensions as _, tasks as _\ndef create_app(): return {}\n"
    )
    (package / "tasks.py").write_text("from .extensions import jobs\n")
    (package / "extensions.py").write_text(
        "from sqlalchemy import MetaData\nfrom sqlalchemy_bgjob import BGJob\n"
        "jobs = BGJob(MetaData())\n"
    )

    for target in ("shoppackage:create_app()", "shoppackage:jobz"):
        with pytest.raises(CommandError, match=r"did you mean shoppackage\.extensions:jobs\?"):
            load_jobs(target, modules)


def test_each_command_names_the_bgjob_that_is_near(modules: Path, in_process: None) -> None:
    (modules / "shopnear.py").write_text(
        "from sqlalchemy import MetaData\nfrom sqlalchemy_bgjob import BGJob\n"
        "jobs = BGJob(MetaData())\ndef create_app(): return {}\n"
    )

    for command in (["handlers"], ["web"], ["enqueue", "greet", "--app"]):
        _, _, err = run(*command, "shopnear:create_app()", "--app-dir", str(modules))
        assert "is of type 'dict', not BGJob; did you mean shopnear:jobs?" in err, command


def test_a_module_is_no_name_to_propose(modules: Path) -> None:
    (modules / "shopimports.py").write_text("import os\n")

    with pytest.raises(CommandError) as raised:
        load("shopimports:jobs", modules)

    assert str(raised.value) == "module 'shopimports' has no 'jobs'"


def test_an_application_that_raises_exits_with_2(
    modules: Path, start: Callable[..., Command]
) -> None:
    """The working directory is importable, also by the installed script."""
    command = start("worker", "shopbroken:jobs", cwd=modules)

    assert command.wait() == 2
    assert command.stderr.startswith("Traceback (most recent call last):\n")
    assert "Error: importing 'shopbroken' failed" in command.stderr
    assert "sqlalchemy_bgjob/" not in command.stderr
