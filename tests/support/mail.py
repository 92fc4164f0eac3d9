"""A mail server for tests of applications that send mail."""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import TYPE_CHECKING

from aiosmtpd.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass
class Mailbox:
    """What the mail server got: (to, Message-ID) of each mail.

    Mails after the first *answered* are kept too, but whoever sent them waits for the answer.
    """

    answered: int = sys.maxsize
    mails: list[tuple[str, str]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle_DATA(  # noqa: N802 - the name that aiosmtpd calls
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content)
        [to] = envelope.rcpt_tos
        self.mails.append((to, mail["Message-ID"]))
        if len(self.mails) > self.answered:
            await self.go_on.wait()
        return "250 OK"

    def recipients(self) -> set[str]:
        return {to for to, _ in self.mails}


class MailServer(Controller):
    """A mail server on a port that the system chose."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        host, port = self.socket.getsockname()
        super().__init__(mailbox, hostname=host, port=port)

    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        return self.loop.create_server(self._factory_invoker, sock=self.socket)
