"""How an engine's pool makes its connections: by the engine's URL, or by a creator of its own."""

from typing import Any

from sqlalchemy import Engine, create_engine


def connects_by_url(engine: Engine) -> bool:
    """Whether ``create_engine`` connects; not so with ``creator=``, ``async_creator=``, ``pool=``.

    What is in the URL means nothing then.
    """
    creator: Any = engine.pool._creator  # noqa: SLF001 - there is no public way
    return getattr(creator, "__module__", None) == create_engine.__module__
