"""sqlalchemy-bgjob: version 1 of the tables."""

from alembic import op

from sqlalchemy_bgjob import schema as bgjob

revision: str = "bgjob_0001"
down_revision: str | None = None
branch_labels: tuple[str, ...] = ("bgjob",)
depends_on: str | None = None


def upgrade() -> None:
    bgjob.upgrade(op, from_version=0, to_version=1, **bgjob.revision_options(op))


def downgrade() -> None:
    bgjob.downgrade(op, from_version=1, to_version=0, **bgjob.revision_options(op))
