"""Which frames of a failure are told: those of the user's code, the innermost one last."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session

from sqlalchemy_bgjob._db.errors import clean, describe, stack
from sqlalchemy_bgjob._db.frames import Places, places
from sqlalchemy_bgjob._drafts.validation import headers, name
from sqlalchemy_bgjob._handlers.around import check_around
from sqlalchemy_bgjob._handlers.outcomes import as_outcome
from sqlalchemy_bgjob._worker.transaction import refuse_to_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def raised(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any will do
        function()
    return caught.value


def parse() -> None:
    json.loads("{")


def test_the_users_innermost_frame_is_the_last_line() -> None:
    """Not the line of the library that it has called, which stands before under its own words."""
    lines = describe(raised(parse)).splitlines()

    assert lines[0].startswith("JSONDecodeError: ")
    assert lines[-1].endswith(" in parse")
    raised_in, called_from = lines.index("raised in"), lines.index("called from")
    assert all("json" in line for line in lines[raised_in + 1 : called_from])
    assert all(__file__ in line for line in lines[called_from + 1 :])


def test_the_frames_of_this_library_are_left_out() -> None:
    def call_us() -> None:
        name("queue", 7)

    assert "_validation" not in describe(raised(call_us))
    assert describe(raised(call_us)).splitlines()[-1].endswith(" in call_us")


def without_callers(error: BaseException) -> BaseException:
    """The error with the frames of this library alone."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)


def test_a_mistake_of_this_library_tells_where_it_is() -> None:
    error = without_callers(raised(lambda: clean(None)))  # type: ignore[arg-type]

    assert describe(error).splitlines()[-1].endswith(" in clean")


@pytest.mark.parametrize(
    "tells",
    [
        lambda: headers({"a": float("nan")}),
        lambda: name("queue", 7),
        lambda: as_outcome(42, "t"),
        lambda: refuse_to_end("COMMIT"),
        lambda: check_around(42, functions=()),
    ],
    ids=["header", "name", "outcome", "end", "around"],
)
def test_what_this_library_tells_the_user_needs_no_frames(tells: Callable[[], Any]) -> None:
    error = without_callers(raised(tells))

    assert error.__traceback__ is not None
    assert places(error) == Places()


def test_what_this_library_has_called_is_not_the_users() -> None:
    """As a settlement that the server refuses: its innermost frame is one of SQLAlchemy's."""
    error = without_callers(raised(lambda: create_engine("nothing://")))

    assert error.__traceback__ is not None
    assert places(error) == Places()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Write modules into a folder of installed packages."""
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))

    def install(module: str, code: str) -> Any:
        (folder / f"{module}.py").write_text(code)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return __import__(module)

    return install


def test_an_installed_application_is_the_users_too(installed: Callable[[str, str], Any]) -> None:
    """As in an image that was built by ``pip install .``: no frame is outside of site-packages."""
    installed("fw_lib", "def call(f): f()\ndef fail(): raise LookupError('x')\n")
    shop = installed("fw_shop", "import fw_lib\ndef handle():\n  fw_lib.fail()\n")

    def as_a_worker_does() -> None:
        shop.handle()

    error = raised(as_a_worker_does)
    while error.__traceback__ is not None and "fw_shop" not in str(
        error.__traceback__.tb_frame.f_code.co_filename
    ):
        error.__traceback__ = error.__traceback__.tb_next
    found = places(error)

    assert [place.function for place in found.called_from] == ["handle"]
    assert [place.function for place in found.raised_in] == ["fail"]


def test_an_installed_application_that_another_library_calls(
    installed: Callable[[str, str], Any],
) -> None:
    """As a hook of the session, or what a coroutine of the application waits for."""
    hooks = installed("fw_hooks", "def refuse(session): raise LookupError('x')\n")
    session = Session()
    event.listen(session, "before_commit", hooks.refuse)
    session.begin()

    found = places(without_callers(raised(session.commit)))

    assert found.called_from[-1].function == "refuse"
    assert found.raised_in == ()


def test_a_wrapper_that_is_installed_is_not_the_users(
    installed: Callable[[str, str], Any],
) -> None:
    tracing = installed("fw_trace", "def traced(f): f()\n")

    def handle() -> None:
        raise ValueError("x")

    found = places(raised(lambda: tracing.traced(handle)))

    assert found.called_from[-1].function == "handle"
    assert found.raised_in == ()


def test_a_timeout_is_where_the_coroutine_waited() -> None:
    """The TimeoutError itself has only frames of asyncio."""

    async def waits() -> None:
        await asyncio.sleep(60)

    async def run() -> BaseException:
        try:
            async with asyncio.timeout(0.0):
                await waits()
        except TimeoutError as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            return error
        raise AssertionError

    assert places(asyncio.run(run())).called_from[-1].function == "waits"


def test_a_stack_has_lines_of_source_and_no_values() -> None:
    def deep(secret: str) -> None:
        raise KeyError("order")

    def outer() -> None:
        try:
            deep("canary" + "-71e0")
        except KeyError as error:
            raise ExceptionGroup("several", [ValueError("member")]) from error

    text = stack(raised(outer))

    assert "    raise KeyError(\"order\")\nKeyError: 'order'" in text
    assert "caused by\nTraceback (most recent call last):" in text
    assert "contains\nTraceback (most recent call last):\nValueError: member" in text
    assert "canary-71e0" not in text


def test_a_deep_recursion_keeps_its_end() -> None:
    def down(depth: int) -> None:
        if depth == 0:
            raise ValueError("end")
        down(depth - 1)

    found = places(raised(lambda: down(200)))

    assert len(found.called_from) == 12
    assert {place.function for place in found.called_from} == {"down"}
