"""What the command line logs: lines to read, or one JSON object a line; both to stderr."""

import json
import logging
import sys
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

logger = logging.getLogger("sqlalchemy_bgjob")

_SAYS: Final = "bgjob-says"
_MOST_UNSAID: Final = 20
"""Lines of :func:`say` that wait; while there are so many, further ones are dropped."""

_own_stderr = _json = False


def configure(format: LogFormat, level: str, process: str | None = None) -> None:
    """Send every log record, warning and uncaught exception of this process to stderr.

    Args:
        format: How a line looks.
        level: The lowest level, such as ``info``.
        process: Which of several processes this is, for each line to say.
    """
    global _own_stderr, _json  # noqa: PLW0603 - logging is a matter of the process
    _json = format == "json"
    _own_stderr = _json or process is not None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if format == "json" else text_formatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def own_stderr() -> bool:
    """Whether stderr is for log lines only: JSON, or those of several processes."""
    return _own_stderr


def say(level: int, words: str, *args: object) -> None:
    """Log, and wait for it for a second at most: a pipe that nobody reads may be full."""
    if sum(thread.name == _SAYS for thread in threading.enumerate()) >= _MOST_UNSAID:
        return
    arguments = (level, words, *args)
    thread = threading.Thread(target=logger.log, args=arguments, name=_SAYS, daemon=True)
    with suppress(RuntimeError):  # no thread is left: whoever handles a signal must go on
        thread.start()
        thread.join(1.0)


def report(problem: str, *, exit_code: int, traceback: str | None) -> None:
    """Log why a command ends."""
    extra = {"exit_code": exit_code, **({} if traceback is None else {"exception": traceback})}
    text_only = traceback is not None and not _json
    logger.error("%s", f"{traceback}{problem}" if text_only else problem, extra=extra)


def text_formatter(process: str | None) -> logging.Formatter:
    """Lines for people, with the process in front when there are several."""
    prefix = "" if process is None else f"[{process.replace('%', '%%')}] "
    return logging.Formatter(f"{prefix}%(asctime)s %(levelname)s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One object: time, level, logger, message, then whatever ``extra=`` was given."""

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
        except (TypeError, ValueError):  # NaN, a circle, or keys that are not strings
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
