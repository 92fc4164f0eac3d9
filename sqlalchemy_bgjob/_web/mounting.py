"""Where the dashboard is mounted, also in frameworks that leave it out of the scope."""

from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send


class Rooted:
    """Completes the scope of an application that Litestar has mounted.

    By ASGI, ``path`` is the whole path and ``root_path`` its beginning, which leads here. Litestar
    gives only the rest as ``path``, with a slash at its end, and no ``root_path``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its root_path."""
        if scope["type"] == "http" and not scope.get("root_path"):
            scope = _completed(scope)
        await self._app(scope, receive, send)


def _completed(scope: Scope) -> Scope:
    raw = unquote_to_bytes(scope.get("raw_path") or b"")
    whole, path = raw.decode("utf-8", "replace"), str(scope["path"])
    if path == "/" and whole and not whole.endswith("/"):  # the mount itself, without its slash
        return {**scope, "root_path": whole, "path": f"{whole}/"}
    rest = path if whole.endswith(path) else path.rstrip("/")
    if not rest or whole == rest or not whole.endswith(rest):
        return scope
    return {**scope, "root_path": whole[: -len(rest)], "path": whole}
