"""Handlers: what ``@jobs.handler`` accepts, and what it makes of a function."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest

from sqlalchemy_bgjob import BGJob, InvalidArg, JobType, constant
from sqlalchemy_bgjob._handlers.options import ChunkKeywords, HandlerKeywords, HandlerOptions
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from a_module_that_is_not_there import Unknown  # type: ignore[import-not-found]


@dataclass
class Arg:
    number: int


@pytest.fixture
def jobs() -> BGJob[Any, Any]:
    return new_queue()


def test_the_function_stays_what_it_was(jobs: BGJob[Any, Any]) -> None:
    @jobs.handler("t", queue="q")
    def handler(ctx: Any, arg: Arg, times: int = 2) -> int:
        """Multiply."""
        return arg.number * times

    assert handler(None, Arg(3)) == 6
    assert handler(None, Arg(3), times=5) == 15
    assert (handler.__name__, handler.__doc__) == ("handler", "Multiply.")
    assert handler.__module__ == __name__
    assert inspect.signature(handler).parameters.keys() == {"ctx", "arg", "times"}
    assert isinstance(handler, JobType)
    assert (handler.type, handler.queue) == ("t", "q")
    assert repr(handler) == "<handler 't' on queue 'q'>"
    assert jobs.registry.find("t", "any") is handler
    assert [h.type for h in jobs.registry] == ["t"]
    assert jobs.registry.queues() == {"q"}


class Async:
    async def __call__(self, ctx: Any, arg: Arg) -> None: ...


class Methods:
    def plain(self, ctx: Any, arg: Arg) -> None: ...

    async def coroutine(self, ctx: Any, arg: Arg) -> None: ...

    @staticmethod
    def static(ctx: Any, arg: Arg) -> None: ...

    @classmethod
    async def of_class(cls, ctx: Any, arg: Arg) -> None: ...


def plain(ctx: Any, arg: Arg) -> None: ...


def plain_of_three(first: Any, ctx: Any, arg: Arg) -> None: ...


async def coroutine(ctx: Any, arg: Arg, *, extra: int = 0) -> None: ...


@functools.wraps(coroutine)
async def wrapped(*args: Any, **kwargs: Any) -> None:
    await coroutine(*args, **kwargs)


CALLABLES: dict[str, tuple[Callable[..., Any], bool]] = {
    "function": (plain, False),
    "coroutine function": (coroutine, True),
    "wrapped": (wrapped, True),
    "partial": (functools.partial(plain_of_three, None), False),
    "partial of a coroutine function": (functools.partial(coroutine, extra=1), True),
    "partial of a partial": (functools.partial(functools.partial(coroutine), extra=1), True),
    "callable object": (Async(), True),
    "partial of a callable object": (functools.partial(Async()), True),
    "method": (Methods().plain, False),
    "coroutine method": (Methods().coroutine, True),
    "static method": (Methods.static, False),
    "class method": (Methods.of_class, True),
}


@pytest.mark.core
@pytest.mark.parametrize(("function", "is_coroutine"), CALLABLES.values(), ids=CALLABLES)
def test_every_callable_is_known_for_what_it_is(
    function: Callable[..., Any], is_coroutine: bool, jobs: BGJob[Any, Any]
) -> None:
    """A coroutine function that is taken for a plain one would never be awaited."""
    handler = jobs.handler("t")(function)

    assert handler.is_coroutine is is_coroutine
    assert handler.takes_arg is True
    assert handler.annotation is Arg
    assert handler.decode(b'{"number":1}', None) == Arg(1)


def test_a_handler_may_take_the_context_alone(jobs: BGJob[Any, Any]) -> None:
    @jobs.handler("t")
    def handler(ctx: Any, /, *, extra: int = 1, **rest: Any) -> None: ...

    assert handler.takes_arg is False
    assert handler.job().arg is None
    with pytest.raises(TypeError, match=r"takes no arg.*write f\(ctx, arg\)"):
        handler.job({})  # type: ignore[arg-type]


def test_a_handler_without_an_annotation_takes_anything(jobs: BGJob[Any, Any]) -> None:
    @jobs.handler("t")
    def handler(ctx, arg):  # type: ignore[no-untyped-def]
        ...

    for value in ({"a": 1}, None, "x", 1.5, [1]):
        assert handler.decode(handler.job(value).arg, None) == value
    raw = handler.job(b"raw")
    assert handler.decode(raw.arg, raw.headers) == b"raw"


@pytest.mark.core
def test_only_the_args_annotation_must_resolve(jobs: BGJob[Any, Any]) -> None:
    """Others are often imported for type checkers only."""

    @jobs.handler("t")
    def handler(ctx: Unknown, arg: Arg) -> Unknown: ...

    assert handler.annotation is Arg
    with pytest.raises(TypeError, match=r"'Unknown'.*top level of its module"):

        @jobs.handler("u")
        def unknown(ctx: Any, arg: Unknown) -> None: ...


def test_string_annotations_are_resolved_in_their_module(tmp_path: Path) -> None:
    """Not of the module that registers it, nor of a decorator's."""
    (tmp_path / "their_handlers.py").write_text(
        textwrap.dedent("""
            from __future__ import annotations
            from dataclasses import dataclass

            @dataclass
            class Theirs:
                x: int

            def handle(ctx, arg: Theirs | None): ...
        """)
    )
    code = """
import functools, their_handlers
from sqlalchemy import MetaData
from sqlalchemy_bgjob import BGJob

@functools.wraps(their_handlers.handle)
def decorated(*args): ...

jobs = BGJob(MetaData())
for n, f in enumerate((their_handlers.handle, decorated, functools.partial(decorated))):
    print(jobs.handler(str(n))(f).decode(b'{"x":1}', None))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split() == ["Theirs(x=1)"] * 3, done.stderr


LAZY = "" if sys.version_info >= (3, 14) else "from __future__ import annotations"
"""What a module begins with whose annotations are evaluated when somebody asks for them."""


def run_handlers(folder: Path, source: str) -> str:
    """What a module prints that is given ``jobs``."""
    header = f"""{LAZY}
import dataclasses
import functools
from typing import TYPE_CHECKING
from sqlalchemy import MetaData
from sqlalchemy_bgjob import BGJob

if TYPE_CHECKING:
    from sqlalchemy_bgjob import Context, Unknown

jobs = BGJob(MetaData())
"""
    (folder / "handlers.py").write_text(header + textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "handlers.py"], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.core
def test_names_for_type_checkers_only_are_left_alone(tmp_path: Path) -> None:
    """Linters move what only annotations need under TYPE_CHECKING."""
    told = run_handlers(
        tmp_path,
        """
        @jobs.handler("function")
        def function(ctx: Context, number: int, *, log: Unknown = None) -> Unknown: ...

        @jobs.handler("coroutine")
        async def coroutine(ctx: Context[Unknown], number: int | None) -> None: ...

        class Callable:
            def __call__(self, ctx: Context, number: list[int]) -> Unknown: ...
            def method(self, ctx: Context, number: "int") -> Unknown: ...

        jobs.handler("object")(Callable())
        jobs.handler("method")(Callable().method)
        jobs.handler("partial")(functools.partial(function.function, log=1))

        @functools.wraps(function.function)
        def wrapper(*args): ...

        jobs.handler("wrapped")(wrapper)
        jobs.default_handler("queue")(function.function)
        for handler in jobs.registry:
            print(handler.annotation)
        """,
    )

    assert told.splitlines() == [
        "<class 'int'>",
        "int | None",
        "list[int]",
        *["<class 'int'>"] * 4,
    ]


@pytest.mark.core
def test_an_arg_that_can_not_be_evaluated_is_refused(tmp_path: Path) -> None:
    """Its type is needed at run time, whatever it is for type checkers."""
    annotations = ["Unknown", "list[Unknown]", "Unknown | None", "HasUnknown"]
    refused = """
        try:
            @jobs.handler("t")
            def handler(ctx: Context, arg: {annotation}): ...
        except TypeError as error:
            print(error, end="|end|")
    """
    wrong = "int, more: Unknown"
    told = run_handlers(
        tmp_path,
        "@dataclasses.dataclass\nclass HasUnknown:\n    field: Unknown\n"
        + "".join(
            textwrap.dedent(refused).format(annotation=name) for name in [*annotations, wrong]
        ),
    )

    *refusals, of_wrong, end = told.split("|end|")
    for annotation, words in zip(annotations, refusals, strict=True):
        assert annotation in words
        assert "name 'Unknown' is not defined" in words
        assert "top level of its module" in words
    assert "not f(ctx, arg, more)" in of_wrong, "a wrong function is shown without annotations"
    assert end == ""


WRONG_FUNCTIONS: list[Callable[..., Any]] = [
    lambda: None,
    lambda *, ctx: None,
    lambda ctx, arg, more: None,
    lambda ctx, *, needed: None,
    lambda *args: None,
]


@pytest.mark.parametrize("function", WRONG_FUNCTIONS, ids=lambda f: str(inspect.signature(f)))
def test_a_function_that_cannot_be_called_so_is_refused(
    function: Callable[..., Any], jobs: BGJob[Any, Any]
) -> None:
    with pytest.raises(TypeError, match=r"must be f\(ctx\) or f\(ctx, arg\), not f\("):
        jobs.handler("t")(function)
    assert not list(jobs.registry)


def test_a_type_has_one_handler(jobs: BGJob[Any, Any]) -> None:
    jobs.handler("t")(plain)
    with pytest.raises(ValueError, match=rf"'t' is registered already, by {__name__}\.plain"):
        jobs.handler("t")(coroutine)
    jobs.default_handler("q")(plain)
    with pytest.raises(ValueError, match="'q' has a default handler already; it can have only"):
        jobs.default_handler("q")(plain)


@pytest.mark.core
def test_one_function_may_serve_several_types(jobs: BGJob[Any, Any]) -> None:
    """Also through a decorator that copies the attributes of what it wraps."""
    first = jobs.handler("first", queue="a")(plain)
    second = jobs.handler("second", queue="b")(first)  # type: ignore[arg-type]

    @functools.wraps(first)
    def around(ctx: Any, arg: Arg) -> None:
        first(ctx, arg)

    third = jobs.handler("third", queue="c")(around)

    assert [(h.type, h.queue) for h in (first, second, third)] == [
        ("first", "a"),
        ("second", "b"),
        ("third", "c"),
    ]
    assert second.function is plain
    assert third.function is around


def test_a_default_handler_takes_what_nobody_else_does(jobs: BGJob[Any, Any]) -> None:
    own = jobs.handler("own", queue="other")(plain)
    default = jobs.default_handler("q")(coroutine)

    assert jobs.registry.find("own", "q") is own
    assert jobs.registry.find("unknown", "q") is default
    assert jobs.registry.find("unknown", "other") is None
    assert jobs.registry.find_type("unknown") is None
    assert jobs.registry.queues() == {"other", "q"}
    assert list(jobs.registry) == [own, default]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_attempts": 0}, "not a number from 1"),
        ({"max_attempts": -1}, "not a number from 1"),
        ({"max_attempts": 1.5}, "not a number from 1"),
        ({"max_attempts": True}, "not a number from 1"),
        ({"max_attempts": 1_000_001}, "above 1000000"),
        ({"retry": 5}, "not callable"),
        ({"timeout": 0}, "end every run at once"),
        ({"timeout": timedelta(0)}, "end every run at once"),
        ({"timeout": -1}, "between 0"),
        ({"timeout": float("nan")}, "between 0"),
        ({"timeout": "5"}, "seconds"),
        ({"isolation_level": "READ UNCOMMITTED"}, "not one of"),
        ({"isolation_level": "serializable"}, "not one of"),
        ({"queue": ""}, "1 to 128"),
        ({"queue": "a\0"}, "NUL"),
        ({"chunk": 0}, "not 1 to 10000 jobs"),
        ({"chunk": 10_001}, "not 1 to 10000 jobs"),
        ({"chunk": True}, "not 1 to 10000 jobs"),
        ({"wait": 1}, "give chunk= too"),
        ({"chunk": 10, "wait": -1}, "between 0"),
        ({"chunk": 10, "max_attempts": 1}, "needs a second attempt, alone"),
        ({"chunk": 10}, r"write list\[Arg\] instead of Arg"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], problem: str, jobs: BGJob[Any, Any]
) -> None:
    with pytest.raises((ValueError, TypeError), match=problem):
        jobs.handler("t", **options)(plain)
    assert not list(jobs.registry)


@pytest.mark.parametrize("type", ["", "t" * 129, "\ud800", 7, None], ids=repr)
def test_a_type_is_a_name(type: Any, jobs: BGJob[Any, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="type"):
        jobs.handler(type)(plain)


def test_options_are_kept(jobs: BGJob[Any, Any]) -> None:
    policy = constant(3)
    made = jobs.handler(
        "t",
        max_attempts=None,
        retry=policy,
        timeout=timedelta(minutes=2),
        isolation_level="SERIALIZABLE",
        session=False,
    )(plain)

    assert made.options.max_attempts is None
    assert made.options.retry is policy
    assert made.options.timeout == 120.0
    assert made.options.isolation_level == "SERIALIZABLE"
    assert made.options.session is False
    assert jobs.handler("u")(plain).options.max_attempts == 20


def test_the_keywords_of_a_handler_are_its_options() -> None:
    """With the same types, but that a duration may also be a timedelta."""
    declared = {field.name: field.type for field in fields(HandlerOptions)}
    keywords = get_type_hints(ChunkKeywords)

    duration = float | timedelta | None
    of_chunks = {"chunk": int, "wait": float | timedelta}
    of_duration = dict.fromkeys(("timeout", "grace", "record"), duration)
    assert keywords == {**declared, **of_duration, **of_chunks}
    assert get_type_hints(HandlerKeywords).keys() == keywords.keys() - of_chunks.keys()


@pytest.mark.parametrize(
    "annotation",
    [list[Arg], Sequence[Arg], list, Any, None],
    ids=["list", "sequence", "bare", "any", "none"],
)
def test_a_handler_of_chunks_takes_a_list_of_args(jobs: BGJob[Any, Any], annotation: Any) -> None:
    """What is enqueued, and checked, is one of them."""

    def handler(ctx: Any, args: Any) -> None: ...

    if annotation is None:
        del handler.__annotations__["args"]
    else:
        handler.__annotations__["args"] = annotation
    made = jobs.handler("t", chunk=10, wait=timedelta(seconds=2))(handler)

    assert (made.options.chunk, made.options.wait) == (10, 2.0)
    typed = annotation in (list[Arg], Sequence[Arg])
    assert made.annotation is (Arg if typed else Any)
    assert made.job(Arg(1) if typed else 1).arg_json == ({"number": 1} if typed else 1)


def test_a_default_handler_takes_no_chunks(jobs: BGJob[Any, Any]) -> None:
    """A call is for jobs of one type."""
    options: Any = {"chunk": 10}
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunk'"):
        jobs.default_handler("q", **options)


def test_an_arg_that_is_no_json_is_refused_when_it_is_registered(jobs: BGJob[Any, Any]) -> None:
    class NoJson:
        pass

    def handler(ctx: Any, arg: Any) -> None: ...

    handler.__annotations__["arg"] = NoJson
    with pytest.raises(TypeError, match="NoJson can't be decoded from JSON"):
        jobs.handler("t")(handler)


def test_what_a_row_holds_is_decoded_or_refused(jobs: BGJob[Any, Any]) -> None:
    handler = jobs.handler("t")(plain)
    assert handler.decode(b'{"number":1}', {}) == Arg(1)
    for data, headers in (
        (None, None),
        (b"", None),
        (b"{}", None),
        (b'{"number":"x"}', None),
        (b'{"number":1}', {"content-type": "application/octet-stream"}),
    ):
        with pytest.raises(InvalidArg):
            handler.decode(data, headers)


def test_a_job_takes_what_enqueue_takes(jobs: BGJob[Any, Any]) -> None:
    handler = jobs.handler("t")(plain)
    with pytest.raises(InvalidArg, match=r"\$\.number"):
        handler.job({"number": "x"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'arg2'"):
        handler.job(Arg(1), arg2=1)
