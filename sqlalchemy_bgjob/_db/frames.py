"""Where an exception came from: the frames of its traceback, and whose code they are. Pure.

A frame is file, line and function; a traceback also has the lines of the source. Neither shows the
value of a variable.
"""

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NamedTuple

_OURS: Final = str(Path(__file__).parents[1]) + os.sep
_STANDARD: Final = tuple(
    str(Path(sysconfig.get_paths()[name])) + os.sep for name in ("stdlib", "platstdlib")
)
_INSTALLED: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_CALLED_BY_US: Final = frozenset({"sqlalchemy", "psycopg", "psycopg2", "asyncpg"})
_MISTAKES: Final = (AssertionError, AttributeError, LookupError, NameError)
"""Errors that this library never raises on purpose: they are bugs of ours."""
_MOST_FRAMES: Final = 12
_MOST_CAUSES: Final = 5


_Frame = tuple[FrameType, int]


class Place(NamedTuple):
    """One frame of a traceback."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class Places:
    """The frames of an exception without this library's, in two parts, each in Python's order.

    Attributes:
        called_from: Frames up to the user's innermost, which is last.
        raised_in: Frames of other libraries that the user's innermost frame called.
    """

    called_from: tuple[Place, ...] = ()
    raised_in: tuple[Place, ...] = ()


def places(error: BaseException) -> Places:
    """Where an exception, or one of its causes, left the user's code.

    The user's code is all that belongs neither to this library, nor to Python, nor to an installed
    package. An application that is itself installed is recognized by the first frame that belongs
    neither to Python nor to a library that we call: the handler, or its wrapper.

    Without a frame of the user's the result is empty: the message says it all, or the database
    refused a statement of ours. A bug of ours is the exception, and reported with our frames.
    """
    stacks = [_walk(one.__traceback__) for one in causes(error)]
    for stack in stacks:
        if any(_is_users(frame) for frame, _ in stack):
            return _in_two(stack, _is_users)
    for stack in stacks:
        first = next((frame for frame, _ in stack if not _is_beneath(frame)), None)
        if first is not None:
            return _in_two(stack, _belongs_to(first))
    if not isinstance(error, _MISTAKES):
        return Places()
    ours = [_place(*frame) for frame in traceback.walk_tb(error.__traceback__)]
    return Places(called_from=tuple(ours[-_MOST_FRAMES:]))


def users_place(error: BaseException) -> Place | None:
    """The user's innermost frame in an exception or one of its causes; None if there is none."""
    for one in causes(error):
        for frame, line in reversed(_walk(one.__traceback__)):
            if _is_users(frame):
                return _place(frame, line)
    return None


def causes(error: BaseException) -> list[BaseException]:
    """An exception and its chain of causes, as Python would show it; at most five."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while (
        cause is not None and len(found) < _MOST_CAUSES and not any(cause is one for one in found)
    ):
        found.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found


def source(trace: TracebackType | None) -> str:
    """The frames of a traceback as Python shows them, with the lines of the source."""
    return "".join(traceback.format_tb(trace))


def _walk(trace: TracebackType | None) -> list[_Frame]:
    """The frames of a traceback without this library's."""
    return [
        (frame, line)
        for frame, line in traceback.walk_tb(trace)
        if not frame.f_code.co_filename.startswith(_OURS)
    ]


def _in_two(stack: list[_Frame], is_users: Callable[[FrameType], bool]) -> Places:
    end = 1 + max(index for index, (frame, _) in enumerate(stack) if is_users(frame))
    called_from, raised_in = stack[:end][-_MOST_FRAMES:], stack[end:][-_MOST_FRAMES:]
    return Places(
        tuple(_place(*frame) for frame in called_from), tuple(_place(*frame) for frame in raised_in)
    )


def _place(frame: FrameType, line: int) -> Place:
    return Place(frame.f_code.co_filename, line, frame.f_code.co_name)


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    if file.startswith("<"):  # generated code, or code typed at a prompt
        return frame.f_globals.get("__name__") == "__main__"
    if _package(frame) in _CALLED_BY_US:  # compiled code has a relative path: asyncpg/protocol.pyx
        return False
    return not (any(part in file for part in _INSTALLED) or file.startswith(_STANDARD))


def _is_beneath(frame: FrameType) -> bool:
    """Whether a frame belongs to Python or to a library that we call ourselves."""
    package = _package(frame)
    return package in _CALLED_BY_US or package in sys.stdlib_module_names


def _belongs_to(first: FrameType) -> Callable[[FrameType], bool]:
    """A test of whether a frame is of the same top-level package as the first."""
    package = _package(first)
    return lambda frame: _package(frame) == package


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
