"""sqlalchemy-bgjob: version 1 of the tables of records, for ``BGJob(records=True)``."""

from alembic import op

from sqlalchemy_bgjob import schema as bgjob

revision: str = "bgjob_records_0001"
down_revision: str | None = None
branch_labels: tuple[str, ...] = ("bgjob_records",)
depends_on: str | None = "bgjob_0001"


def upgrade() -> None:
    bgjob.records.upgrade(op, from_version=0, to_version=1, **bgjob.revision_options(op))


def downgrade() -> None:
    bgjob.records.downgrade(op, from_version=1, to_version=0, **bgjob.revision_options(op))
