"""What the shop serves. A view commits: then the order and its job exist, or neither does."""

from typing import Any

from flask import Blueprint, request
from sqlalchemy import select

from sqlalchemy_bgjob import enqueue

from .extensions import db
from .models import Order
from .tasks import Receipt, send_receipt

shop = Blueprint("shop", __name__)


@shop.post("/orders")
def create_order() -> tuple[dict[str, Any], int]:
    order = Order(email=request.form["email"])
    db.session.add(order)
    db.session.flush()  # gives the order its id
    enqueue(db.session, send_receipt, Receipt(order.id))
    db.session.commit()
    return as_json(order), 201


@shop.get("/orders")
def list_orders() -> list[dict[str, Any]]:
    return [as_json(order) for order in db.session.scalars(select(Order).order_by(Order.id))]


def as_json(order: Order) -> dict[str, Any]:
    return {"id": order.id, "email": order.email, "receipt_sent_at": order.receipt_sent_at}
