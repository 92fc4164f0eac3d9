"""The handlers, which a worker runs in an application context of the job's own."""

import smtplib
from dataclasses import dataclass
from email.message import EmailMessage

from flask import current_app
from sqlalchemy import func
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import Context, MoveToDlq

from .extensions import db, jobs
from .models import Order


@dataclass
class Receipt:
    order_id: int


@jobs.handler("send_receipt", queue="mail")
def send_receipt(ctx: Context[Session], receipt: Receipt) -> MoveToDlq | None:
    order = db.session.get(Order, receipt.order_id)  # db.session is ctx.session
    if order is None:
        return MoveToDlq("no such order")
    # If the worker is killed before the commit, the mail is sent again, with the same Message-ID.
    send_mail(order.email, f"Receipt for order {order.id}", f"<{ctx.job.id}@shop.example>")
    order.receipt_sent_at = func.now()  # commits together with the job's end
    return None


def send_mail(to: str, subject: str, message_id: str) -> None:
    mail = EmailMessage()
    mail["From"] = "shop@shop.example"
    mail["To"] = to
    mail["Subject"] = subject
    mail["Message-ID"] = message_id
    config = current_app.config
    # The job's transaction is open meanwhile, so do not wait for a mail server for long.
    with smtplib.SMTP(config["SMTP_HOST"], config["SMTP_PORT"], timeout=10) as smtp:
        smtp.send_message(mail)
