"""The log of the command line: plain lines, or one JSON object a line; both to stderr.

The process belongs to the command line, and so does its stderr. :func:`configure` sets logging up,
and :func:`restore` sets it up again after the import of the application, which may have changed it.
Handlers of the application that write elsewhere stay.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal

from .._job_context import JOB_FIELDS, JobLogFilter

LogFormat = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OURS: Final = ("sqlalchemy_bgjob", "sqlalchemy_bgjob.jobs")

_OF_PLUGINS: Final = "alembic.runtime.plugins"
"""It says a line for each plugin, in every process that imports Alembic, as Flask-Migrate does."""

logger = logging.getLogger(_OURS[0])

_SAYS: Final = "bgjob-says"
_MOST_UNSAID: Final = 20
"""How many lines of :func:`say` may wait; more are dropped."""


@dataclass(frozen=True, slots=True)
class _Log:
    """The log as it was configured."""

    handler: logging.Handler
    level: str
    is_json: bool
    own_stderr: bool


_log: _Log | None = None


class _OwnLogger(logging.Logger):
    """A logger that the application's ``logging.config`` and ``logging.disable()`` can't turn off.

    ``logging.config`` disables each logger that it does not name, perhaps as late as in a handler.
    """

    disabled = property(lambda self: False, lambda self, value: None)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name of the base class
        return level >= self.getEffectiveLevel()


def configure(format: LogFormat, level: str, process: str | None = None) -> None:
    """Send every log record, warning and uncaught exception of this process to stderr.

    Args:
        format: How a line looks.
        level: The lowest level, such as ``info``.
        process: The name of this one of several processes, which each line shows.
    """
    global _log  # noqa: PLW0603 - logging is a matter of the process
    is_json = format == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(JobLogFilter())
    handler.setFormatter(JsonFormatter(process) if is_json else text_formatter(process))
    _log = _Log(handler, level.upper(), is_json, is_json or process is not None)
    for name in _OURS:
        logging.getLogger(name).__class__ = _OwnLogger
    restore()
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def restore() -> None:
    """Set the log up again as :func:`configure` did, whatever was configured since."""
    if _log is None:
        return
    root = logging.getLogger()
    root.handlers[:] = [_log.handler, *_elsewhere(root)]
    root.setLevel(_log.level)
    own = [handler for handler in _elsewhere(logger) if handler not in root.handlers]
    # Its own list of handlers: the application may replace the root's later.
    logger.handlers[:] = [*root.handlers, *own]
    logger.setLevel(_log.level)
    logger.propagate = False
    of_jobs = logging.getLogger(_OURS[1])
    of_jobs.handlers[:] = _elsewhere(of_jobs)
    of_jobs.propagate = True
    plugins = logging.getLogger(_OF_PLUGINS)
    if _log.level == "INFO" and plugins.level == logging.NOTSET:
        plugins.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").disabled = False
    if _log.own_stderr:
        _take_over_others()


def _take_over_others() -> None:
    """Take the console handlers off the application's loggers, and let these propagate."""
    for other in list(logging.Logger.manager.loggerDict.values()):
        if not isinstance(other, logging.Logger) or other.name in _OURS:
            continue
        elsewhere = _elsewhere(other)
        if elsewhere != other.handlers:
            other.handlers[:] = elsewhere
            other.propagate = True


def _elsewhere(of: logging.Logger) -> list[logging.Handler]:
    return [handler for handler in of.handlers if not _is_for_the_console(handler)]


def _is_for_the_console(handler: logging.Handler) -> bool:
    """Whether a handler, or one that it passes its records to, writes to stdout or stderr."""
    if _log is not None and handler is _log.handler:
        return True
    behind = getattr(getattr(handler, "listener", None), "handlers", ())  # a queue's
    if behind:
        return all(map(_is_for_the_console, behind))
    loguru = sys.modules.get("loguru")
    globals_of_emit = getattr(type(handler).emit, "__globals__", {})
    if loguru is not None and any(value is loguru.logger for value in globals_of_emit.values()):
        return True
    console = getattr(handler, "console", None)  # rich's
    stream = getattr(handler, "stream", None) or getattr(console, "file", None)
    if stream is None:
        return False
    with suppress(OSError, ValueError, AttributeError):  # in memory, or closed
        written = os.fstat(stream.fileno())
        return any(os.path.samestat(written, os.fstat(number)) for number in (1, 2))
    return stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


def configured() -> bool:
    """Whether this process logs to stderr."""
    return _log is not None


def own_stderr() -> bool:
    """Whether stderr is for log lines only: JSON, or those of several processes."""
    return _log is not None and _log.own_stderr


def say(level: int, words: str, *args: object) -> None:
    """Log in a thread, and wait a second at most: stderr may be a full pipe that nobody reads."""
    if sum(thread.name == _SAYS for thread in threading.enumerate()) >= _MOST_UNSAID:
        return
    arguments = (level, words, *args)
    thread = threading.Thread(target=logger.log, args=arguments, name=_SAYS, daemon=True)
    with suppress(RuntimeError):  # no thread can start: the signal must be handled all the same
        thread.start()
        thread.join(1.0)


def report(problem: str, *, exit_code: int, traceback: str | None) -> None:
    """Log why a command ends."""
    extra = {"exit_code": exit_code, **({} if traceback is None else {"exception": traceback})}
    text_only = traceback is not None and not (_log is not None and _log.is_json)
    logger.error("%s", f"{traceback}{problem}" if text_only else problem, extra=extra)


def text_formatter(process: str | None) -> logging.Formatter:
    """The format of plain lines, with the process in front when there are several."""
    prefix = "" if process is None else f"[{process.replace('%', '%%')}] "
    return TextFormatter(f"{prefix}%(asctime)s %(levelname)s %(name)s: %(message)s")


class TextFormatter(logging.Formatter):
    """A plain line, and at its end the job whose handler has written it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the base class
        """The line; our own lines name the job by themselves."""
        line = super().formatMessage(record)
        fields = vars(record)
        if "job_id" not in fields or record.name in _OURS:
            return line
        found = [f"{name}={_word(fields[name])}" for name in JOB_FIELDS if name in fields]
        return f"{line} [{' '.join(found)}]"


def _word(value: object) -> str:
    """A value that can't be taken for several, nor for a line of its own."""
    text = str(value)
    return text if re.fullmatch(r"[\w.:/@+-]+", text) else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, then the fields of ``extra=``."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line of JSON; what JSON can't hold becomes its repr."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process is not None:
            fields["process"] = self._process
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        fields.update((name, value) for name, value in extra.items() if name not in fields)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        try:
            return json.dumps(fields, default=repr, allow_nan=False)
        except (TypeError, ValueError):  # NaN, a cycle, or keys that are not strings
            safe = {k: v if isinstance(v, str) else repr(v) for k, v in fields.items()}
            return json.dumps(safe)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    logger.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: Any) -> None:
    name = args.thread.name if args.thread is not None else "?"
    trace = (args.exc_type, args.exc_value, args.exc_traceback)
    if args.exc_value is None:  # pragma: no cover - only at the interpreter's very end
        traceback.print_exception(*trace)
        return
    logger.error("uncaught %s in thread %r", args.exc_type.__name__, name, exc_info=trace)
