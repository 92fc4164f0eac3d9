"""What all other modules import: the database, its migrations and the queue."""

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
migrate = Migrate(autogenerate_plugins=["alembic.autogenerate.*", "sqlalchemy_bgjob"])
jobs = BGJob(db)  # its tables join db.metadata
