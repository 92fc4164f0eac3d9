"""The routes and a worker in one process: for small applications, and while developing."""

from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin
from litestar import Litestar
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, lifespan

from .db import alchemy, engine, jobs
from .web import create_order, read_order

worker_engine = create_async_engine(engine.url, pool_size=12)  # its own, for ten slots
app = Litestar(
    [create_order, read_order],
    plugins=[SQLAlchemyPlugin(config=alchemy)],
    lifespan=[lifespan(AsyncWorker, jobs, worker_engine, queues={"mail": 10})],
)
