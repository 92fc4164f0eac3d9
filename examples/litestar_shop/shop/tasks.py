"""The handlers, which a worker imports by ``--import shop.tasks``."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from sqlalchemy_bgjob import Context, MoveToDlq

from .db import Order, jobs
from .mail import send_mail

logger = logging.getLogger(__name__)


@dataclass
class Receipt:
    order_id: UUID


@jobs.handler("send_receipt", queue="mail")
async def send_receipt(ctx: Context[AsyncSession], receipt: Receipt) -> MoveToDlq | None:
    order = await ctx.session.get(Order, receipt.order_id)
    if order is None:
        return MoveToDlq("no such order")
    # Sent at least once; a mail that comes twice has the same Message-ID.
    message_id = f"<{ctx.job.id}@shop.example>"
    await asyncio.to_thread(send_mail, order.email, f"Receipt for order {order.id}", message_id)
    order.receipt_sent_at = datetime.now(UTC)  # commits together with the job's end
    logger.info("mailed the receipt of order %s", order.id)
    return None
