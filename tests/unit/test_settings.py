"""The settings of a worker: checked once, when they are made."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any, get_type_hints

import pytest

from sqlalchemy_bgjob.settings import Queue, SettingOptions, WorkerSettings, make_settings


def test_the_order_of_a_queue_is_one_of_two() -> None:
    assert (Queue().slots, Queue().order) == (10, "priority")
    with pytest.raises(ValueError, match="order='fifo' is neither 'priority' nor 'time'"):
        Queue(5, order="fifo")  # type: ignore[arg-type]


FIELDS = dataclasses.fields(WorkerSettings)
LONG = ["dead_keep", "batch_keep", "counts_keep", "audit_keep", "max_lifetime"]
DURATIONS = [
    field.name for field in FIELDS if field.metadata["unit"] == "seconds" and field.name not in LONG
]
MAY_BE_ZERO = ["shutdown_timeout", "unknown_type_grace"]


def test_the_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(WorkerSettings()) == {
        "heartbeat_interval": 5.0,
        "lease_timeout": 30.0,
        "rescue_interval": 1.8,
        "orphan_interval": 60.0,
        "health_interval": 60.0,
        "poll_interval": 1.0,
        "shutdown_timeout": 25.0,
        "unknown_type_grace": 300.0,
        "max_claim": 1_000,
        "hold_timeout": 1.0,
        "listen": True,
        "max_stuck": 0.5,
        "dead_keep": 0.0,
        "batch_keep": 604_800.0,
        "counts_keep": 604_800.0,
        "audit_keep": 31_536_000.0,
        "until_idle": False,
        "max_jobs": 0,
        "max_lifetime": 0.0,
        "max_memory": 0,
        "limit_jitter": 0.1,
    }


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), -float("inf"), 86_400.5])
def test_a_duration_out_of_its_range_is_refused_with_the_range(name: str, value: float) -> None:
    options: Any = {name: value}

    with pytest.raises(ValueError, match=rf"^{name}=\S+ is not between \S+ and 86400 seconds$"):
        WorkerSettings(**options)


@pytest.mark.parametrize("name", sorted({*DURATIONS} - {*MAY_BE_ZERO}))
def test_an_interval_of_zero_would_be_a_busy_loop(name: str) -> None:
    options: Any = {name: 0.0}

    with pytest.raises(ValueError, match=rf"^{name}=0.0 is not between 0.01 and"):
        WorkerSettings(**options)


@pytest.mark.parametrize("name", MAY_BE_ZERO)
def test_a_time_to_wait_may_be_zero(name: str) -> None:
    options: Any = {name: 0}

    assert getattr(WorkerSettings(**options), name) == 0


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", ["5", None, True, b"5"])
def test_a_duration_that_is_no_number_is_a_type_error(name: str, value: object) -> None:
    options: Any = {name: value}

    with pytest.raises(TypeError, match=rf"^{name}=.* is not a number of seconds$"):
        WorkerSettings(**options)


@pytest.mark.parametrize("name", LONG)
def test_what_is_kept_or_lives_may_do_so_for_years(name: str) -> None:
    assert getattr(WorkerSettings(**{name: 10 * 366 * 86_400}), name) == 316_224_000  # type: ignore[misc]
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"^{name}=\S+ is not between 0 and 3e\+09 seconds$"):
            WorkerSettings(**{name: value})  # type: ignore[misc]


@pytest.mark.parametrize("value", [0, -1, 10_001])
def test_max_claim_has_a_range(value: int) -> None:
    with pytest.raises(ValueError, match=rf"^max_claim={value} is not between 1 and 10000 jobs$"):
        WorkerSettings(max_claim=value)


@pytest.mark.parametrize("value", ["200", 2.5, None, True, float("nan")])
def test_max_claim_is_a_whole_number(value: Any) -> None:
    """Or the LIMIT of the first claim would fail, in a worker that is already running."""
    with pytest.raises(TypeError, match=r"^max_claim=.* is not a whole number of jobs$"):
        WorkerSettings(max_claim=value)


@pytest.mark.parametrize("value", ["no", 0, None])
def test_listen_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^listen=.* is not True or False$"):
        WorkerSettings(listen=value)


def test_one_late_beat_must_not_lose_all_jobs() -> None:
    with pytest.raises(ValueError, match=r"at least three times heartbeat_interval=5\.0 s"):
        WorkerSettings(lease_timeout=14.9)

    assert WorkerSettings(lease_timeout=15.0).lease_timeout == 15.0


def test_settings_are_frozen_and_can_be_pickled() -> None:
    """The command line starts its worker processes with them."""
    settings = WorkerSettings(poll_interval=0.5)

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.poll_interval = 2.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert dataclasses.replace(settings, listen=False).poll_interval == 0.5


def test_a_worker_s_keywords_are_the_settings() -> None:
    """The same names, with the same types, in the order of the dataclass."""
    declared = [(field.name, field.type) for field in dataclasses.fields(WorkerSettings)]
    assert list(get_type_hints(SettingOptions).items()) == declared
    assert make_settings(None, {"poll_interval": 0.5}) == WorkerSettings(poll_interval=0.5)


def test_settings_are_given_as_an_object_or_as_keywords() -> None:
    settings = WorkerSettings(poll_interval=0.5)

    assert make_settings(settings, {}) is settings
    with pytest.raises(TypeError, match="not both: listen"):
        make_settings(settings, {"listen": False})
