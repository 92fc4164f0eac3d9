"""What the tests share: which server they use, databases on it, and waiting without sleeping."""

from support.databases import TestServer, with_driver
from support.waiting import wait_until, wait_until_async

__all__ = ["TestServer", "wait_until", "wait_until_async", "with_driver"]
