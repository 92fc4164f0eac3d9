"""The routes. They import the handlers whose jobs they enqueue."""

from dataclasses import dataclass
from uuid import UUID

from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin
from litestar import Litestar, get, post
from litestar.exceptions import NotFoundException
from sqlalchemy.ext.asyncio import AsyncSession

from sqlalchemy_bgjob import enqueue

from .db import Order, alchemy
from .tasks import Receipt, send_receipt


@dataclass
class NewOrder:
    email: str


@post("/orders")
async def create_order(data: NewOrder, db_session: AsyncSession) -> Order:
    order = Order(email=data.email)
    db_session.add(order)
    await db_session.flush()  # gives the order its id
    await enqueue(db_session, send_receipt, Receipt(order.id))
    await db_session.commit()  # here, so that a commit that fails is no 201
    return order


@get("/orders/{order_id:uuid}")
async def read_order(order_id: UUID, db_session: AsyncSession) -> Order:
    order = await db_session.get(Order, order_id)
    if order is None:
        raise NotFoundException("no such order")
    return order


app = Litestar([create_order, read_order], plugins=[SQLAlchemyPlugin(config=alchemy)])
