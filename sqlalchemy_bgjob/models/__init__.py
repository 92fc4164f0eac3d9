"""The tables, as Declarative models that live in the user's own MetaData.

:func:`build_models` maps ``Job``, ``DeadJob`` and the others in a registry of their own over the
user's MetaData, so the tables are the same whatever the user's base class adds to its models.
:class:`JobMixin` and :class:`DeadJobMixin` are for users who want columns or relationships of
their own on these tables.

* Every column names its SQL type, so a ``type_annotation_map`` cannot change it.
* Names of constraints and indexes are final (``conv``): a naming convention cannot change them.
  Alembic compares by name only, so a changed index or check gets a new name.
* No triggers, no functions, no enum types: Alembic's autogenerate sees all of it.
* Everything compiles on SQLite too, so that a user's own ``create_all()`` still works there.
"""

from ._args import check_args_by
from ._columns import DeadJobMixin, JobMixin, WorkerMixin
from ._errors import PastError, error_type_of, parsed_errors
from ._flow_columns import BatchMixin, ControlMixin, ScheduleMixin
from ._lease import lease_at_insert
from ._mapping import Models, Recording, build_models, check_names
from ._record_columns import AuditMixin, MinuteMixin, RecordMixin

__all__ = [
    "AuditMixin",
    "BatchMixin",
    "ControlMixin",
    "DeadJobMixin",
    "JobMixin",
    "MinuteMixin",
    "Models",
    "PastError",
    "RecordMixin",
    "Recording",
    "ScheduleMixin",
    "WorkerMixin",
    "build_models",
    "check_args_by",
    "check_names",
    "error_type_of",
    "lease_at_insert",
    "parsed_errors",
]
