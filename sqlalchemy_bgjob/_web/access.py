"""Who may do what on the dashboard, as ``access=`` says; and which requests are forged."""

import hmac
import inspect
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from starlette.requests import Request

Permission = Literal["cancel", "run", "enqueue", "edit", "redrive", "delete", "queues", "schedules"]
"""What somebody may be allowed to do beyond reading.

* ``cancel``: cancel live jobs;
* ``run``: let a scheduled job run now;
* ``enqueue``: enqueue new jobs, also copies of others;
* ``edit``: change a queued job, or the arg of a dead one;
* ``redrive``: bring dead jobs back;
* ``delete``: delete dead jobs;
* ``queues``: pause and resume queues, and set their slots;
* ``schedules``: pause, resume and run schedules.
"""
PERMISSIONS: Final[frozenset[Permission]] = frozenset(get_args(Permission))


@dataclass(frozen=True, slots=True)
class Access:
    """What one visitor of the dashboard may do.

    Attributes:
        can: The permissions, a set of ``PERMISSIONS``; by default all. With an empty set the
            visitor may only read.
        user: The visitor's name, for the log of actions and the audit, and as who has paused
            something.
        args: Whether the visitor sees args and headers of jobs.

    Raises:
        ValueError: A permission is unknown.
        TypeError: *can* is a str.
    """

    can: Collection[Permission] = PERMISSIONS
    user: str | None = None
    args: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.can, str):
            raise TypeError(f"can={self.can!r} is a str; write a set: {{{self.can!r}}}")
        unknown = set(self.can) - PERMISSIONS
        if unknown:
            raise ValueError(
                f"unknown permissions {sorted(unknown)}; there are {sorted(PERMISSIONS)}"
            )


Grant = Access | Literal["all", "read"] | None
Answer = Grant | Awaitable[Grant]
AccessOption = Literal["all", "read"] | Access | Callable[[Request], Answer] | None
"""What ``access=`` takes: the same for everybody, or a function of the request."""


def checked(access: Any) -> AccessOption:
    """What was given as ``access=``.

    Raises:
        TypeError: It is none of what it may be.
    """
    if access is None or isinstance(access, Access) or access in ("all", "read"):
        return access  # type: ignore[no-any-return]
    if callable(access):
        return access  # type: ignore[no-any-return]
    raise TypeError(
        f"access={access!r} is none of 'all', 'read', an Access, or a function of the request that "
        f"returns one of them, or None for nobody"
    )


async def access_of(option: AccessOption, request: Request) -> Access | None:
    """What this visitor may do; None if nothing."""
    found: Any = option
    if callable(option) and not isinstance(option, Access):
        found = option(request)
        if inspect.isawaitable(found):
            found = await found
    match found:
        case "all":
            return Access()
        case "read":
            return Access(can=())
        case Access():
            return found
        case None | False:
            return None
    raise TypeError(
        f"the function given as access= returned {type(found).__name__}, and not 'all', 'read', an "
        f"Access or None"
    )


# ---- forged requests ----------------------------------------------------------------------------

COOKIE: Final = "bgjob_csrf"
FIELD: Final = "csrf"
_LENGTH: Final = 32


def token_of(request: Request) -> str | None:
    """The token that this browser has, if it has one that we may have made."""
    token = request.cookies.get(COOKIE, "")
    return token if len(token) == _LENGTH and token.isascii() and token.isalnum() else None


def new_token() -> str:
    """A token for a browser that has none."""
    return secrets.token_hex(_LENGTH // 2)


def forged(request: Request, given: str) -> str | None:
    """Why a request that changes something may not be the visitor's own will; None if it is.

    The browser says where it comes from, and no page can make it lie; very old ones say nothing.
    The token is in a form and in a cookie, and no other site can read or write that.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        if site != "same-origin":
            return f"it comes from another site (Sec-Fetch-Site: {site[:20]})"
    elif origin is not None:
        host = request.headers.get("host", "")
        if _host_of(origin) != host.lower():
            return "it comes from another site (Origin)"
    token = token_of(request)
    if token is None or not hmac.compare_digest(token.encode(), given.encode()):
        return "its token is missing or too old: reload the page, and try again"
    return None


def _host_of(origin: str) -> str | None:
    """The host and port of an origin; None if it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as "http://["
        return None
