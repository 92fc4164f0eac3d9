"""A shop that mails a receipt for each order: FastAPI, SQLAlchemy and psycopg.

The order and the job that mails its receipt are one commit, so there is never the one without the
other. The worker marks the order in the same commit that completes the job, whatever is killed
and when.

To run it, in this folder::

    $ docker run --rm -d -p 5432:5432 -e POSTGRES_PASSWORD=shop postgres:18
    $ pip install -e "../..[psycopg]" fastapi uvicorn aiosmtpd
    $ export DATABASE_URL=postgresql+psycopg://postgres:shop@localhost:5432/postgres
    $ python -c "import app; app.create_tables()"

Then each of these in a terminal of its own, with ``DATABASE_URL`` there too; the third is a mail
server that prints what it gets::

    $ uvicorn app:app
    $ sqlalchemy-bgjob worker app:jobs
    $ python -m aiosmtpd -n -l localhost:8025

And buy something; a moment later ``receipt_sent_at`` is a time::

    $ curl localhost:8000/orders --json '{"email": "ann@example.org", "product": "tea"}'
    $ curl localhost:8000/orders/1

Other mail servers: ``SMTP_HOST`` and ``SMTP_PORT``.
"""

import os
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import DateTime, create_engine, func, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_bgjob import BGJob, Context, MoveToDlq, enqueue

DATABASE_URL = os.environ["DATABASE_URL"]
SMTP_HOST = os.environ.get("SMTP_HOST", "localhost")
SMTP_PORT = int(os.environ.get("SMTP_PORT", "8025"))

engine = create_engine(DATABASE_URL)
# What was committed can be shown without asking for it again.
new_session = sessionmaker(engine, expire_on_commit=False)


# ---- tables ---------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"

    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    product: Mapped[str]
    receipt_sent_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


jobs = BGJob(Base)


def create_tables() -> None:
    """Make the tables, the queue's among them, and something to sell.

    Enough for a first try. In production Alembic does it: ``alembic revision --autogenerate``
    sees the queue's tables beside yours, since they share their metadata.
    """
    Base.metadata.create_all(engine)
    with new_session.begin() as session:
        session.merge(Product(name="tea", stock=1000))


# ---- the job --------------------------------------------------------------------------------


@dataclass
class Receipt:
    order_id: int


@jobs.handler("send_receipt", queue="mail")
def send_receipt(ctx: Context[Session], receipt: Receipt) -> MoveToDlq | None:
    """Mail a receipt and mark its order.

    The mark is made exactly once: it commits together with the job's completion. The mail is sent
    at least once: no mail server takes part in a commit, so a worker that is killed after sending
    and before the commit leaves a job that sends again. Both mails then have the same Message-ID,
    by which the receiver's mail server or program can tell that they are one.
    """
    order = ctx.session.get(Order, receipt.order_id)
    if order is None:
        return MoveToDlq("no such order")
    send_mail(order, message_id=f"<{ctx.job.id}@shop.example>")  # if it raises: tried again later
    order.receipt_sent_at = func.now()
    return None


def send_mail(order: Order, message_id: str) -> None:
    mail = EmailMessage()
    mail["From"] = "shop@shop.example"
    mail["To"] = order.email
    mail["Subject"] = f"Receipt for order {order.id}"
    mail["Message-ID"] = message_id
    mail.set_content(f"Thank you for buying {order.product}!")
    # The handler's transaction is open meanwhile, so do not wait for a mail server for long.
    with smtplib.SMTP(SMTP_HOST, SMTP_PORT, timeout=10) as smtp:
        smtp.send_message(mail)


# ---- the API --------------------------------------------------------------------------------


class NewOrder(BaseModel):
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    product: str


class OrderOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    product: str
    receipt_sent_at: datetime | None


def get_session() -> Iterator[Session]:
    with new_session() as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]

app = FastAPI(title="Shop")


@app.post("/orders", status_code=201, response_model=OrderOut)
def create_order(new: NewOrder, session: SessionDep) -> Order:
    # Committed here and not in the dependency: FastAPI ends that only after the response is sent.
    with session.begin():
        order = Order(email=new.email, product=new.product)
        session.add(order)
        session.flush()  # gives the order its id
        enqueue(session, send_receipt, Receipt(order.id))
        # Last, since every other order of this product waits for it. If it is sold out, the order
        # and its job are rolled back.
        take_from_stock(session, new.product)
    return order


def take_from_stock(session: Session, name: str) -> None:
    taken = session.execute(
        update(Product)
        .where(Product.name == name, Product.stock > 0)
        .values(stock=Product.stock - 1)
        .returning(Product.stock)
    )
    if taken.first() is None:
        raise HTTPException(409, f"sold out: {name}")


@app.get("/orders/{order_id}", response_model=OrderOut)
def read_order(order_id: int, session: SessionDep) -> Order:
    order = session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "no such order")
    return order
