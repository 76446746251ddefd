"""How many trials run at the same time, by what Ray has."""

from __future__ import annotations

from typing import Any

import pytest

from search.cluster.connection import Supply
from search.config import ConfigError
from search.execution import tuner


@pytest.fixture()
def has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what Ray has; nothing is waited for."""

    def there(**kinds: tuple[float, float]) -> None:
        monkeypatch.setattr(
            tuner, "wait_for", lambda kind, *_, **__: Supply(kind, *kinds.get(kind, (0, 0)))
        )
        monkeypatch.setattr(tuner, "_hosts", lambda: "2 hosts")

    return there


def at_once(asked: int | None = None, **more: Any) -> int:
    usual = {"device": "cpu", "runner": "actor", "workers_per_trial": 1, "gpu_share": {}}
    options = {**usual, **more}
    return tuner.trials_at_once(asked, wait_seconds=600.0, on_wait=lambda text: None, **options)


def test_as_many_trials_as_cores_or_as_asked(has: Any) -> None:
    has(CPU=(6, 6))
    assert at_once() == 6
    assert at_once(20) == 20, "they take turns"
    assert at_once(runner="train", workers_per_trial=4) == 1


def test_gpus_are_shared_and_every_trial_needs_a_core(has: Any) -> None:
    share = {"logmel_resnet": 0.125, "cnn3d": 0.5}
    has(CPU=(32, 32), GPU=(2, 2))
    assert at_once(device="cuda", runner="train", gpu_share=share) == 16
    has(CPU=(8, 8), GPU=(2, 2))
    assert at_once(device="cuda", runner="train", gpu_share=share) == 8
    assert at_once(device="cuda", runner="train", workers_per_trial=2, gpu_share=share) == 1


def test_hosts_that_the_autoscaler_may_start_count(has: Any) -> None:
    has(CPU=(8, 20), GPU=(1, 4))
    assert at_once(device="cuda", runner="train") == 4


@pytest.mark.parametrize(
    ("kinds", "missing"),
    [
        (
            {"CPU": (16, 16), "GPU": (3, 3)},
            "4 GPUs, Ray has 3 on 2 hosts, also after 10 min: 1 are",
        ),
        ({"CPU": (3, 3), "GPU": (8, 8)}, "4 CPUs, Ray has 3 on 2 hosts, also after 10 min: 1 are"),
    ],
)
def test_what_is_missing_is_said(has: Any, kinds: Any, missing: str) -> None:
    has(**kinds)
    with pytest.raises(ConfigError, match=f"A trial of 4 workers would take {missing} missing"):
        at_once(device="cuda", runner="train", workers_per_trial=4)
