"""What type checkers say to who writes handlers and workers; see ``producers.py``."""
# pyright: strict

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypedDict, assert_type

from sqlalchemy import Engine, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob import (
    AsyncWorker,
    BGJob,
    Complete,
    Context,
    FinishedRun,
    JobInfo,
    JobRecord,
    JobType,
    MoveToDlq,
    Observer,
    Outcome,
    Reschedule,
    Retry,
    Worker,
    constant,
    exponential,
)
from sqlalchemy_bgjob.models import RecordMixin
from sqlalchemy_bgjob.testing import JobKit


class Base(DeclarativeBase): ...


jobs = BGJob(Base)


@jobs.handler("a", max_attempts=None, retry=exponential(base=5), timeout=timedelta(minutes=1))
def returns_an_outcome(ctx: Context[Session], arg: int) -> Outcome | None:
    return Reschedule(60) if ctx.cancelled else Complete()


@jobs.handler("b", retry=lambda attempt, error: None if attempt > 3 else 60)
async def coroutine_returns_an_outcome(ctx: Context[AsyncSession], arg: int) -> Retry | MoveToDlq:
    return Retry(after=30) if ctx.job.attempt < 3 else MoveToDlq("gone")


@jobs.handler("c", queue="mail", session=False, retry=constant(10))
def bare_context(ctx: Context, arg: str) -> None:
    assert_type(ctx.job, JobInfo)


recorded = BGJob(MetaData(), records=True, record_all=timedelta(days=1))


@recorded.handler("with a result", record=timedelta(days=7))
def with_a_result(ctx: Context[Session], arg: int) -> Complete[str] | None:
    ctx.progress(3, of=10, note="page 3")
    ctx.progress("3")  # E: arg-type
    return Complete("done")


@recorded.handler("with another result")
async def with_another_result(ctx: Context[AsyncSession]) -> Complete[str]:
    return Complete(3)  # E: arg-type


@recorded.handler("a chunk with results", chunk=100, record=timedelta(days=7))
def chunk_with_results(ctx: Context[Session], args: list[int]) -> dict[str, Complete[str] | Retry]:
    return {job.id: Complete("done") for job in ctx.jobs}


assert_type(chunk_with_results, JobType[int])


@recorded.handler("kept", record=None)
def kept_as_all(ctx: Context) -> None: ...


async def looks(engine: Engine, async_engine: AsyncEngine, session: Session) -> None:
    assert_type(recorded.record(session, "id"), JobRecord | None)
    assert_type(recorded.wait(engine, "id", timeout=30), JobRecord | None)
    assert_type(await recorded.wait(async_engine, "id"), JobRecord | None)
    recorded.wait(session, "id")  # E: call-overload
    assert_type(recorded.Record, type[RecordMixin])


@jobs.handler("with a default")
def with_a_default(ctx: Context[Session], arg: str = "") -> None: ...


@jobs.default_handler("mail")
def of_any_type(ctx: Context, arg: Any) -> None: ...


assert_type(returns_an_outcome, JobType[int])
assert_type(coroutine_returns_an_outcome, JobType[int])
assert_type(bare_context, JobType[str])
assert_type(with_a_default, JobType[str])


@jobs.handler("a chunk", chunk=100, wait=1.0)
def takes_a_chunk(ctx: Context[Session], args: list[int]) -> dict[str, Retry] | None:
    assert_type(ctx.jobs, tuple[JobInfo, ...])
    return {ctx.jobs[3].id: Retry(60, "locked")}


@jobs.handler("a coroutine's chunk", chunk=100, max_attempts=None)
async def coroutine_takes_a_chunk(ctx: Context[AsyncSession], args: list[str]) -> Outcome | None:
    return None


@jobs.handler("a chunk without args", chunk=100, wait=timedelta(seconds=1))
def takes_no_args(ctx: Context) -> None: ...


assert_type(takes_a_chunk, JobType[int])
assert_type(coroutine_takes_a_chunk, JobType[str])
assert_type(takes_no_args, JobType[None])


@jobs.handler("one arg of many", chunk=100)  # E: arg-type
def one_arg_of_many(ctx: Context, arg: int) -> None: ...


@jobs.handler("a chunk's result", chunk=100)  # E: arg-type
def returns_results(ctx: Context, args: list[int]) -> dict[str, int]:
    return {}


@jobs.handler("by itself")
def outcomes_by_itself(ctx: Context, arg: list[int]) -> None: ...


assert_type(outcomes_by_itself, JobType[list[int]])


@jobs.handler("of three")  # E: arg-type
def of_three(ctx: Context, arg: int, more: int) -> None: ...


@jobs.handler("of none")  # E: arg-type
def of_none() -> None: ...


@jobs.handler("by keyword")  # E: arg-type
def by_keyword(ctx: Context, *, arg: int) -> None: ...


@jobs.handler("no context")  # E: arg-type
def no_context(order_id: int) -> None: ...


@jobs.handler("a result")  # E: arg-type
def returns_a_result(ctx: Context, arg: int) -> int:
    return arg


@jobs.handler("a coroutine's result")  # E: arg-type
async def coroutine_returns_a_result(ctx: Context, arg: int) -> int:
    return arg


@jobs.handler  # E: call-overload
def without_a_type(ctx: Context) -> None: ...


class Mailer:
    def send(self, to: str) -> None: ...


class Resources(TypedDict):
    mailer: Mailer


@contextmanager
def provide(ctx: Context) -> Generator[Resources]:
    yield {"mailer": Mailer()}


@asynccontextmanager
async def async_provide(ctx: Context[AsyncSession]) -> AsyncGenerator[Resources]:
    yield {"mailer": "smtp"}  # E: typeddict-item


class OtherBase(DeclarativeBase): ...


with_resources = BGJob(OtherBase, provide=provide)
BGJob(OtherBase, table_prefix="async_", provide=async_provide)
BGJob(OtherBase, provide=Mailer)  # E: arg-type


@with_resources.handler("with a resource", queue="mail")
def with_a_resource(ctx: Context[Session], arg: int, *, mailer: Mailer) -> None:
    mailer.send("ada")


@with_resources.handler("coroutine with a resource")
async def coroutine_with_a_resource(ctx: Context[AsyncSession], *, mailer: Mailer) -> Retry:
    return Retry(60)


@with_resources.handler("without any")
def without_any(ctx: Context[Session], arg: str) -> None: ...


@with_resources.handler("a chunk with a resource", chunk=10)
def chunk_with_a_resource(ctx: Context[Session], args: list[int], *, mailer: Mailer) -> None: ...


assert_type(chunk_with_a_resource, JobType[int])


@with_resources.default_handler("mail")
def default_with_a_resource(ctx: Context, arg: Any, *, mailer: Mailer) -> None: ...


assert_type(with_a_resource, JobType[int])
assert_type(coroutine_with_a_resource, JobType[None])
assert_type(without_any, JobType[str])


@with_resources.handler("no context again")  # E: arg-type
def no_context_again(order_id: int, *, mailer: Mailer) -> None: ...


@with_resources.handler("a result again")  # E: arg-type
def returns_a_result_again(ctx: Context, *, mailer: Mailer) -> int:
    return 1


with_resources.handler("g", max_attemts=3)  # E: call-overload


@jobs.middleware
def around(call: Callable[[], Any], ctx: Context) -> Any:
    return call()


@jobs.middleware
async def around_coroutines(call: Callable[[], Any], ctx: Context) -> Any:
    return await call()


jobs.middleware(around, around_coroutines)
jobs.middleware(around, None)


@jobs.middleware  # E: type-var
def around_nothing(ctx: Context) -> None: ...


@jobs.on_enqueue
def headers(type: str, queue: str) -> dict[str, str] | None:
    return {"type": type} if queue else None


@jobs.on_enqueue  # E: type-var
def no_headers(type: str, queue: str) -> str:
    return type


request_id: ContextVar[str] = ContextVar("request_id")
jobs.carry(request_id=request_id)
jobs.carry(request_id="r-1")  # E: arg-type


@contextmanager
def lifespan() -> Generator[int]:
    yield 1


@asynccontextmanager
async def async_lifespan() -> AsyncGenerator[int]:
    yield 1


jobs.handler("d", timeout="5")  # E: call-overload
jobs.handler("e", max_attemts=3)  # E: call-overload
jobs.handler("f", retry=60)  # E: call-overload
jobs.handler("h", wait=1.0)  # E: call-overload
jobs.handler("i", chunk="10")  # E: call-overload


def workers(engine: Engine, async_engine: AsyncEngine) -> None:
    with Worker(jobs, engine, queues={"mail": 10}, poll_interval=0.5):
        pass
    Worker(jobs, async_engine)  # E: arg-type
    AsyncWorker(jobs, engine)  # E: arg-type
    Worker(with_resources, engine, lifespan=lifespan)
    AsyncWorker(jobs, async_engine, lifespan=lifespan)
    AsyncWorker(jobs, async_engine, lifespan=async_lifespan)
    Worker(jobs, engine, lifespan=async_lifespan)  # E: arg-type
    JobKit(with_resources).state = 1
    Worker(jobs, engine, poll_intervall=0.5)  # E: call-arg
    Worker(jobs, engine, poll_interval="0.5")  # E: arg-type
    with AsyncWorker(jobs, async_engine):  # E: attr-defined
        pass


async def async_workers(engine: Engine, async_engine: AsyncEngine) -> None:
    async with AsyncWorker(jobs, async_engine, sync_engine=engine, queues=["mail"]) as worker:
        worker.request_stop()
        worker.stop()  # E: unused-coroutine
    async with Worker(jobs, engine):  # E: attr-defined
        pass


class Alert(Observer):
    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        assert_type(run.exception, BaseException | None)
        assert_type(job.attempt, int)
