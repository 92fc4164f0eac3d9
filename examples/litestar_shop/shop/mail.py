"""Sends mail."""

import os
import smtplib
from email.message import EmailMessage

SMTP_HOST = os.environ.get("SMTP_HOST", "localhost")
SMTP_PORT = int(os.environ.get("SMTP_PORT", "8025"))


def send_mail(to: str, subject: str, message_id: str) -> None:
    mail = EmailMessage()
    mail["From"] = "shop@shop.example"
    mail["To"] = to
    mail["Subject"] = subject
    mail["Message-ID"] = message_id
    mail.set_content("Thank you!")
    # The handler's transaction is open meanwhile, so do not wait for a mail server for long.
    with smtplib.SMTP(SMTP_HOST, SMTP_PORT, timeout=10) as smtp:
        smtp.send_message(mail)
