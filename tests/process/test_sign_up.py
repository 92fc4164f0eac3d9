"""A newcomer's project: FastAPI on asyncpg, each test rolled back, by anyio and by pytest-asyncio.

The test of sign-up asserts its job and runs it, in four lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.kit_project import run_pytest

if TYPE_CHECKING:
    from pathlib import Path

APP = """
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy_bgjob import BGJob, Context, enqueue

engine = create_async_engine("postgresql+asyncpg://localhost/users")
new_session = async_sessionmaker(engine, expire_on_commit=False)

class Base(DeclarativeBase): ...

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    welcomed: Mapped[bool] = mapped_column(default=False)

jobs = BGJob(Base)

@jobs.handler("send_welcome", queue="mail")
async def send_welcome(ctx: Context[AsyncSession], user_id: int) -> None:
    (await ctx.session.get_one(User, user_id)).welcomed = True

async def get_session():
    async with new_session() as session:
        yield session

app = FastAPI()

@app.post("/users", status_code=201)
async def sign_up(email: str, session: Annotated[AsyncSession, Depends(get_session)]) -> int:
    async with session.begin():
        user = User(email=email)
        session.add(user)
        await session.flush()
        await enqueue(session, send_welcome, user.id)
    return user.id
"""
CONFTEST = """
import asyncio

import httpx
import pytest
from app import Base, app, jobs, new_session
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="session")
def bgjob_jobs():
    return jobs

@pytest.fixture(scope="session")
def url(bgjob_postgres):
    url = make_url(bgjob_postgres).set(drivername="postgresql+asyncpg")
    asyncio.run(create_tables(url))
    return url

async def create_tables(url):
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()

@pytest.fixture
async def connection(url):
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.begin()
        new_session.configure(bind=connection, join_transaction_mode="create_savepoint")
        yield connection
        await connection.rollback()
    await engine.dispose()

@pytest.fixture
async def session(connection):
    async with new_session() as session:
        yield session

@pytest.fixture
async def client(connection):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
"""
TEST = """
from app import User, send_welcome
from sqlalchemy import func, select

async def test_sign_up_sends_a_welcome(client, session, bgjob):
    await client.post("/users", params={"email": "ada@example.com"})
    await bgjob.assert_enqueued(session, send_welcome, queue="mail")
    await bgjob.work_due(session)
    assert await session.scalar(select(User.welcomed))

async def test_sign_up_with_its_job_done(client, session, connection, bgjob):
    async with bgjob.inline(connection):
        await client.post("/users", params={"email": "ada@example.com"})
    assert (await session.scalars(select(User))).one().welcomed

async def test_the_others_were_rolled_back(session, bgjob):
    assert await session.scalar(select(func.count()).select_from(User)) == 0
    assert await bgjob.all_enqueued(session) == []
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in {"app": APP, "conftest": CONFTEST, "test_sign_up": TEST}.items():
        (tmp_path / f"{name}.py").write_text(content)
    return tmp_path


def test_the_test_of_sign_up_has_at_most_six_lines() -> None:
    first = TEST.split("async def ")[1]

    assert len(first.split(":\n", 1)[1].strip().splitlines()) <= 6


@pytest.mark.parametrize("plugin", ["anyio", "pytest-asyncio"])
def test_sign_up_is_tested_in_a_transaction(project: Path, plugin: str) -> None:
    options = ["-p", "no:xdist", "-p", "no:asyncio"]
    if plugin == "anyio":
        test = project / "test_sign_up.py"
        test.write_text(f"import pytest\npytestmark = pytest.mark.anyio\n{TEST}")
    else:
        options = ["-p", "no:xdist", "-p", "no:anyio", "-o", "asyncio_mode=auto"]
        options += [
            "-o",
            "asyncio_default_fixture_loop_scope=function",
        ]  # what is to be the default

    done = run_pytest(project, "-W", "error", *options)

    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_each_process_of_xdist_has_a_server(project: Path) -> None:
    test = project / "test_sign_up.py"
    test.write_text(f"import pytest\npytestmark = pytest.mark.anyio\n{TEST}")

    done = run_pytest(project, "-n", "2", "-p", "no:asyncio")

    assert "3 passed" in done.stdout, done.stdout + done.stderr
