"""Loads the application's BGJob, as ``module:object`` names it, or a file with one alone."""

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..bgjob import BGJob
from . import loader
from .exits import USAGE, CommandError


def load_jobs(app: str, app_dir: Path, imports: Iterable[str] = ()) -> BGJob[Any, Any]:
    """Load the application's BGJob, and import the modules that register its handlers.

    Args:
        app: Names it, see :func:`.loader.load`.
        app_dir: Where to look for modules after Python's own path.
        imports: Modules that register handlers, beside the one that *app* names.

    Raises:
        CommandError: It can't be found, or is something else; a module can't be imported.
    """
    jobs = _found(app, app_dir)
    for module in imports:
        loader.import_module(module, app_dir)
    return jobs


def _found(app: str, app_dir: Path) -> BGJob[Any, Any]:
    module = app.partition(":")[0]
    try:
        found = loader.load(app, app_dir)
    except CommandError as error:
        near = [] if error.traceback else _held_within(module)
        if not near:
            raise
        raise CommandError(error.exit_code, f"{error}; did you mean {' or '.join(near)}?") from None
    if isinstance(found, BGJob):
        return found
    what = f"{app!r} is of type {type(found).__name__!r}, not BGJob"
    if inspect.isroutine(found):
        raise CommandError(USAGE, f"{what}; if it makes one, write {app}()")
    near = [f"{app}.{name}" for name in _held_by(found)]
    near += [f"{module}:{name}" for name in _held_by(sys.modules[module])]
    near = near or _held_within(module)
    remedy = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "name the object that BGJob(...) has made, such as app:jobs"
    )
    raise CommandError(USAGE, f"{what}; {remedy}")


def only_jobs(target: str, app_dir: Path, imports: Iterable[str]) -> tuple[str, BGJob[Any, Any]]:
    """Load the application's BGJob, whose name may be left out where its module has one alone.

    Returns:
        Its name, as for :func:`load_jobs`, and itself.

    Raises:
        CommandError: It can't be found, or there are several.
    """
    if ":" not in target:
        loader.import_module(target, app_dir)
        held = {id(getattr(sys.modules[target], it)): it for it in _held_by(sys.modules[target])}
        if not held:
            raise CommandError(
                USAGE, f"{target!r} has no BGJob; write in it: jobs = BGJob(MetaData())"
            )
        names = [f"{target}:{name}" for name in held.values()]
        if len(names) > 1:
            raise CommandError(USAGE, f"{target!r} has several BGJobs: name {' or '.join(names)}")
        (target,) = names
    return target, load_jobs(target, app_dir, imports)


def _held_by(holder: Any) -> list[str]:
    """The names of a holder's BGJobs; reads no property, which might raise or connect."""
    names = dir(holder)
    return [name for name in names if isinstance(inspect.getattr_static(holder, name, None), BGJob)]


def _held_within(package: str) -> list[str]:
    """The BGJobs in the modules of a package, as far as these are imported; each once."""
    found: dict[int, str] = {}
    for module in [name for name in list(sys.modules) if name.startswith(f"{package}.")]:
        for name in _held_by(sys.modules[module]):
            found.setdefault(id(vars(sys.modules[module])[name]), f"{module}:{name}")
    return list(found.values())
