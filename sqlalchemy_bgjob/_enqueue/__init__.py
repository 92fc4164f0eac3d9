"""The ways into the table: one job, many, from a query, by COPY, by ``session.add``."""

from . import orm  # noqa: F401 - it listens
