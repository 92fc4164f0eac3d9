"""sqlalchemy-bgjob: version 2 of the tables."""

from alembic import op

from sqlalchemy_bgjob import schema as bgjob

revision: str = "bgjob_0002"
down_revision: str | None = "bgjob_0001"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    bgjob.upgrade(op, from_version=1, to_version=2, **bgjob.revision_options(op))


def downgrade() -> None:
    bgjob.downgrade(op, from_version=2, to_version=1, **bgjob.revision_options(op))
