"""JobKit with the sessions of frameworks: those of Flask-SQLAlchemy, and SQLModel's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import func, select
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel
from sqlmodel import Session as ModelSession
from sqlmodel import select as select_models

from sqlalchemy_bgjob import BGJob, Context, enqueue
from sqlalchemy_bgjob.testing import JobKit

if TYPE_CHECKING:
    import pytest
    from sqlalchemy import Engine


def test_requests_of_flask_that_commit_are_rolled_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, db = Flask("shop"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db.init_app(app)

    class User(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Integer, primary_key=True)
        welcomed = db.Column(db.Boolean, default=False)

    jobs = BGJob(db)
    bgjob = JobKit(jobs)

    @jobs.handler("welcome")
    def welcome(ctx: Context, user_id: int) -> None:
        ctx.session.get_one(User, user_id).welcomed = True

    @app.post("/users")
    def sign_up() -> str:
        user = User()
        db.session.add(user)
        db.session.flush()
        enqueue(db.session, welcome, user.id)
        db.session.commit()
        return str(user.id)

    with app.app_context():
        db.create_all()
        with db.engine.connect() as connection, connection.begin() as transaction:
            monkeypatch.setitem(db.engines, None, connection)
            db.session.configure(join_transaction_mode="create_savepoint")

            app.test_client().post("/users")
            bgjob.assert_enqueued(db.session, welcome, queue="default")
            bgjob.work_due(db.session)
            assert db.session.scalar(select(User.welcomed))
            with bgjob.inline(db.session) as ran, bgjob.inline(connection) as same:
                app.test_client().post("/users")
            assert len(ran.outcomes) + len(same.outcomes) == 1
            assert db.session.scalars(select(User.welcomed)).all() == [True, True]

            db.session.remove()
            transaction.rollback()
        monkeypatch.undo()
        assert db.session.scalar(select(func.count()).select_from(User)) == 0
        db.session.remove()
        db.engine.dispose()

    with bgjob.inline(db.session) as ran:
        pass  # outside of the context there is no session, and nothing to run
    assert ran.outcomes == []


class Model(SQLModel, registry=registry()):
    """Apart from those of other tests."""


class Hero(Model, table=True):
    id: int | None = Field(default=None, primary_key=True)
    welcomed: bool = False


hero_jobs = BGJob(Model)


@hero_jobs.handler("greet")
def greet(ctx: Context[ModelSession], hero_id: int) -> None:
    hero = ctx.session.exec(select_models(Hero).where(Hero.id == hero_id)).one()
    hero.welcomed = True


def test_sqlmodels_session_is_the_handlers_too(engine: Engine) -> None:
    bgjob = JobKit(hero_jobs)
    Model.metadata.create_all(engine)
    with engine.connect() as connection, connection.begin() as transaction:
        with ModelSession(connection, join_transaction_mode="create_savepoint") as session:
            hero = Hero()
            session.add(hero)
            session.flush()
            assert hero.id is not None
            enqueue(session, greet, hero.id)
            bgjob.assert_enqueued(session, greet, hero.id)
            bgjob.work_due(session, session_factory=ModelSession)
            assert hero.welcomed
            with bgjob.inline(session, session_factory=ModelSession):
                hero.welcomed = False
                enqueue(session, greet, hero.id)
                session.commit()
            assert hero.welcomed
        transaction.rollback()
