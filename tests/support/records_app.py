"""An application whose queue keeps records, for worker processes that are killed."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import MetaData, text

from sqlalchemy_bgjob import BGJob, Complete, Context, MoveToDlq

jobs: BGJob[Any, Any] = BGJob(MetaData(), records=True)


@jobs.handler("with a session", record=3600)
def with_a_session(ctx: Context[Any]) -> Complete[int]:
    ctx.session.execute(text("SELECT 1"))
    ctx.progress(1)
    return Complete(os.getpid())


@jobs.handler("without", record=3600, session=False)
def without(ctx: Context[Any]) -> Complete[int]:
    return Complete(os.getpid())


@jobs.handler("given up", record=3600, session=False)
def given_up(ctx: Context[Any]) -> MoveToDlq:
    return MoveToDlq(f"by {os.getpid()}")
