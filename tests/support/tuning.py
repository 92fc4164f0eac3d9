"""Other values for the engine's constants, where a test can't wait for what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class Tune:
    """``tune(heart, NO_PROGRESS_AFTER=0.5)``: for the rest of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, owner: Any, **constants: Any) -> None:
        for name, value in constants.items():
            assert name.isupper(), f"{name} is no constant"
            was = getattr(owner, name)
            assert isinstance(value, type(was) | int), f"{name} is {was!r}, and not like {value!r}"
            self._monkeypatch.setattr(owner, name, value)
