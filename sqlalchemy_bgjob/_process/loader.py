"""Finds what ``module:object`` names: the application's BGJob, its engine, its session factory.

Every mistake has its own message, with what was tried and the closest names. It includes a
traceback only when the application itself raised.
"""

import importlib
import importlib.util
import inspect
import logging
import pkgutil
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from .._db.errors import did_you_mean
from .exits import USAGE, CommandError

logger = logging.getLogger("sqlalchemy_bgjob")


def load(target: str, app_dir: Path, *, example: str = "app:jobs") -> Any:
    """Import ``module:object``, ``module:object.attribute`` or call ``module:factory()``.

    Args:
        target: Names the object.
        app_dir: The folder of the application, last on Python's path.
        example: A target for the error to show.

    Raises:
        CommandError: There is no such thing, or the application raised.
    """
    module_name, colon, path = target.partition(":")
    if _is_file(module_name):
        raise _refused(
            f"{target!r} names a file; write the module's name: "
            f"{_module_of(module_name)}:{path or 'jobs'}"
        )
    if not colon or not module_name or not path:
        raise _refused(f"{target!r} is not module:object; write it like {example}")
    path, call = (path[:-2], True) if path.endswith("()") else (path, False)
    names = [*module_name.split("."), *path.split(".")]
    if not all(name.isidentifier() for name in names):
        raise _refused(
            f"{target!r} is not module:object, module:object.attribute or module:factory()"
        )
    found: Any = _import(module_name, target, app_dir)
    where = f"module {module_name!r}"
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _refused(f"{where} has no {name!r}{_closest(name, _public(found))}") from None
        except Exception as error:
            raise _raised(f"reading {name!r} of {where}", error) from None
        where = f"{name!r} of {where}"
    return _call(found, where, target) if call else found


def import_module(name: str, app_dir: Path) -> None:
    """Import a module for its side effects, such as registering handlers.

    Raises:
        CommandError: There is no such module, or it raised.
    """
    module_name, colon, _ = name.partition(":")
    if colon or _is_file(module_name):
        raise _refused(
            f"{name!r} is not a module; write the module's name: {_module_of(module_name)}"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise _refused(f"{name!r} is not a module's name; write it like shop.tasks")
    _import(name, name, app_dir)


def _is_file(module_name: str) -> bool:
    return module_name.endswith(".py") or "/" in module_name


def _module_of(file: str) -> str:
    return ".".join(Path(file.removesuffix(".py")).parts)


def _import(name: str, target: str, app_dir: Path) -> ModuleType:
    _warn_of_another(name.partition(".")[0], app_dir)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the module itself or a package above it: another is an import of the application's.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _raised(f"importing {name!r}", error) from None
        parent, _, missing = error.name.rpartition(".")
        path = f"{str(app_dir.resolve())!r} and Python's path"
        folder = f"package {parent!r}" if parent else path
        problem = f"no module {error.name!r} in {folder}"
        known = _modules(parent, app_dir)
        raise _refused(f"cannot load {target!r}: {problem}{_closest(missing, known)}") from None
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name!r}", error) from None


def _call(factory: Callable[[], Any], where: str, target: str) -> Any:
    if not callable(factory):
        raise _refused(f"{where} is not callable; write {target[:-2]} without ()")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise _raised(f"calling {where}", error) from None
    if isinstance(made, Coroutine):
        made.close()
        raise _refused(f"{where} is a coroutine function; name a plain function, or an object")
    return made


def _warn_of_another(name: str, app_dir: Path) -> None:
    """Warn if an installed module hides the application's module of the same name."""
    with suppress(ImportError, ValueError):  # there is none, or it has no file
        found = importlib.util.find_spec(name)
        hidden = PathFinder.find_spec(name, [str(app_dir.resolve())])
        if found is None or hidden is None or found.origin is None or hidden.origin is None:
            return
        if Path(found.origin).resolve() != Path(hidden.origin).resolve():
            logger.warning(
                "%r is imported from %r, which comes first, and not from %r; if that is the one "
                "you mean, rename it, or set PYTHONPATH to its folder",
                name,
                found.origin,
                hidden.origin,
            )


def _modules(package: str, app_dir: Path) -> list[str]:
    """The modules that may be meant: those of the package, or of the application's folder."""
    if not package:
        return [module.name for module in pkgutil.iter_modules([str(app_dir.resolve())])]
    path: Iterable[str] = getattr(sys.modules.get(package), "__path__", ())
    return [module.name for module in pkgutil.iter_modules(path)]


def _public(found: object) -> list[str]:
    """The names of an object that a target may mean: not the modules that a module imports."""
    names = [name for name in dir(found) if not name.startswith("_")]
    held = {name: inspect.getattr_static(found, name, None) for name in names}
    return [name for name, value in held.items() if not isinstance(value, ModuleType)]


def _closest(name: str, known: list[str]) -> str:
    question = did_you_mean(name, known)
    return f"; {question}" if question else ""


def _refused(problem: str) -> CommandError:
    return CommandError(USAGE, problem)


def _raised(doing: str, error: BaseException) -> CommandError:
    """The error for an application that raised, with the traceback from its own first frame on."""
    trace = error.__traceback__
    while trace is not None and _is_machinery(trace):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return CommandError(USAGE, f"{doing} failed: {type(error).__name__}: {error}", "".join(lines))


def _is_machinery(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")
