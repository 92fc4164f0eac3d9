"""What the shop serves. A route commits: then the order and its job exist, or neither does."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlmodel import Session, select

from sqlalchemy_bgjob import enqueue

from .db import get_session
from .models import NewOrder, Order
from .tasks import Receipt, send_receipt

SessionDep = Annotated[Session, Depends(get_session)]

app = FastAPI(title="Shop")


@app.post("/orders", status_code=201)
def create_order(new: NewOrder, session: SessionDep) -> Order:
    order = Order(email=new.email)
    session.add(order)
    enqueue(session, send_receipt, Receipt(order_id=order.id))
    session.commit()
    session.refresh(order)
    return order


@app.get("/orders")
def list_orders(session: SessionDep) -> Sequence[Order]:
    return session.exec(select(Order)).all()
