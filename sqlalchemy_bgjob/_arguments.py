"""Checks of the arguments that both workers take, made by their constructors.

Otherwise a wrong argument would fail each job, or raise an error that does not name it.
"""

import inspect
from collections.abc import Iterable
from dataclasses import fields

from .bgjob import BGJob
from .settings import WorkerSettings
from .telemetry import Observer


def check_arguments(jobs: object, settings: object, options: Iterable[str]) -> None:
    """Check the application's BGJob, the settings, and the names of settings given as keywords.

    Raises:
        TypeError: One of them is not of its kind.
    """
    if not isinstance(jobs, BGJob):
        raise TypeError(
            f"a worker takes the BGJob first, not {type(jobs).__name__}; write (jobs, engine)"
        )
    names = [field.name for field in fields(WorkerSettings)]
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise TypeError(
            f"a worker has no setting {unknown[0]!r}; queues={{'mail': 10}} says how many jobs run "
            f"at once, and the settings are {', '.join(names)}"
        )
    if settings is not None and not isinstance(settings, WorkerSettings):
        raise TypeError(
            f"settings must be a WorkerSettings, not {type(settings).__name__}; write "
            f"WorkerSettings(...), or give its fields as keywords of the worker"
        )


def check_factory(factory: object) -> None:
    """Check the callable that makes sessions.

    Raises:
        TypeError: It can't be called, or is a generator, such as a dependency of FastAPI.
    """
    if factory is not None and not callable(factory):
        raise TypeError(
            f"a session factory makes sessions, and a {type(factory).__name__} can't be called; "
            f"give what made it, such as sessionmaker(engine)"
        )
    if inspect.isgeneratorfunction(factory) or inspect.isasyncgenfunction(factory):
        raise TypeError(
            f"a session factory returns a session, and {factory.__name__}() yields it; give what "
            f"it calls, such as a Session class or a sessionmaker"
        )


def as_observers(observers: object) -> tuple[Observer, ...]:
    """The given observers as a tuple.

    Raises:
        TypeError: They are no list, or a class is among them.
    """
    listed = tuple(observers) if isinstance(observers, Iterable) else None
    if listed is None or any(isinstance(observer, type) for observer in listed):
        raise TypeError("observers= takes a list of objects; write observers=[MyObserver()]")
    return listed
