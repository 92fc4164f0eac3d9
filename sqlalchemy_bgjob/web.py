"""The dashboard: pages about a queue, to be mounted in an ASGI application.

``app.mount("/jobs", dashboard(jobs, engine, access=...))``. It needs
``pip install "sqlalchemy-bgjob[web]"``.
"""

try:
    from ._web.access import PERMISSIONS, Access, Permission
    from ._web.app import dashboard
except ModuleNotFoundError as _missing:
    if _missing.name not in ("starlette", "jinja2"):
        raise
    raise ModuleNotFoundError(
        f'the dashboard needs {_missing.name}; pip install "sqlalchemy-bgjob[web]"',
        name=_missing.name,
    ) from None

__all__ = ["PERMISSIONS", "Access", "Permission", "dashboard"]
