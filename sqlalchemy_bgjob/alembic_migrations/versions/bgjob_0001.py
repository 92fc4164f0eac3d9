"""sqlalchemy-bgjob: version 1 of the tables."""

from alembic import op

from sqlalchemy_bgjob import schema as bgjob

revision = "bgjob_0001"
down_revision = None
branch_labels = ("bgjob",)
depends_on = None


def upgrade() -> None:
    bgjob.upgrade(op, from_version=0, to_version=1, **bgjob.revision_options(op))


def downgrade() -> None:
    bgjob.downgrade(op, from_version=1, to_version=0, **bgjob.revision_options(op))
