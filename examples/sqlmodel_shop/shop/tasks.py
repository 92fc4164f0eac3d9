"""The handlers, which a worker imports by --import."""

import os
import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from uuid import UUID

from sqlmodel import Session, SQLModel, select

from sqlalchemy_bgjob import Context, MoveToDlq

from .db import jobs
from .models import Order

SMTP_HOST = os.environ.get("SMTP_HOST", "localhost")
SMTP_PORT = int(os.environ.get("SMTP_PORT", "8025"))


class Receipt(SQLModel):
    order_id: UUID


@jobs.handler("send_receipt", queue="mail")
def send_receipt(ctx: Context[Session], receipt: Receipt) -> MoveToDlq | None:
    order = ctx.session.exec(select(Order).where(Order.id == receipt.order_id)).first()
    if order is None:
        return MoveToDlq("no such order")
    # If the worker is killed before the commit, the mail is sent again, with the same Message-ID.
    send_mail(order.email, f"Receipt for order {order.id}", f"<{ctx.job.id}@shop.example>")
    order.receipt_sent_at = datetime.now(UTC)  # commits together with the job's end
    return None


def send_mail(to: str, subject: str, message_id: str) -> None:
    mail = EmailMessage()
    mail["From"] = "shop@shop.example"
    mail["To"] = to
    mail["Subject"] = subject
    mail["Message-ID"] = message_id
    # The job's transaction is open meanwhile, so do not wait for a mail server for long.
    with smtplib.SMTP(SMTP_HOST, SMTP_PORT, timeout=10) as smtp:
        smtp.send_message(mail)
