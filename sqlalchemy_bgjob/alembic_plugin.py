"""The Alembic plugin: ``alembic revision --autogenerate`` writes one line for the queue's tables.

Alembic 1.18 or newer finds it by its entry point; ``env.py`` switches it on by name::

    context.configure(..., autogenerate_plugins=["alembic.autogenerate.*", "sqlalchemy_bgjob"])

Without it autogenerate still works, and writes the tables out in full; on SQLAlchemy 2.0 they
then lack their storage parameters, and the worker's start prints the statement that sets them.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult


def setup(plugin: "Plugin") -> None:
    """Register with Alembic, which calls this while it is still being imported."""
    from alembic.util import DispatchPriority  # noqa: PLC0415

    # On another database, such as a test suite's SQLite, the tables are ordinary ones.
    plugin.add_autogenerate_comparator(
        _compare,
        "schema",
        "sqlalchemy_bgjob",
        qualifier="postgresql",
        priority=DispatchPriority.LAST,
    )


def _compare(
    autogen_context: "AutogenContext", upgrade_ops: "UpgradeOps", schemas: set[str | None]
) -> "PriorityDispatchResult":
    # Imported late, since it needs a completely imported Alembic.
    from .schema._autogenerate import compare  # noqa: PLC0415

    return compare(autogen_context, upgrade_ops, schemas)


class _IterableModule(ModuleType):
    """Alembic 1.18.0 to 1.20.0 iterate over what the entry point names; 1.20.1 wants a module.

    A plain module there makes ``import alembic`` fail for everybody who has this package.
    """

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _IterableModule
