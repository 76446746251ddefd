"""An Optuna sampler that draws each proposal from the seed, the study and its number."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.tuning.history import History


class ReseededSampler(BaseSampler):
    """A sampler whose draw depends on seed, trial number, parameter and history alone.

    A sampler that was seeded once repeats its first proposals after a restart. This one is
    reseeded before every draw, so that an interrupted run proposes what the uninterrupted
    one would have, even when it died between two parameters of one trial.

    TPE's cost grows with the trials it sees, so it is shown a bounded part of them.
    """

    def __init__(self, seed: int, history: History) -> None:
        self.seed, self.history = seed, history
        self._joint = self._seeded("")

    def _seeded(self, what: str) -> TPESampler:
        digest = hashlib.sha256(f"{self.seed} {what}".encode()).digest()
        # Groups of parameters that occur together are modelled jointly: the space is conditional.
        return TPESampler(
            seed=int.from_bytes(digest[:4], "little"),
            multivariate=True,
            group=True,
            n_startup_trials=6,
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """Infer as TPE does; a trial's joint draw comes from a sampler of its own.

        It asks which sets of parameters there are: one trial of each says as much as all.
        """
        self._joint = self._seeded(f"{trial.number}")
        seen: Any = _Seen(study, self.history.first_alike())
        return self._joint.infer_relative_search_space(seen, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
        """Sample as TPE does."""
        return self._joint.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Sample as TPE does, seeded by trial and parameter."""
        sampler = self._seeded(f"{trial.number} {param_name}")
        return sampler.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _seen(self, study: optuna.Study) -> Any:
        return _Seen(study, self.history.shown())


class _Seen:
    """A study with some of its trials, as its sampler is shown it."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    # A private name of Optuna's: its samplers read trials through it. A sampler's argument for
    # which trials it sees would replace it.
    def _get_trials(
        self, deepcopy: bool, states: Container[TrialState], use_cache: bool
    ) -> list[FrozenTrial]:
        """Return the trials, when samplers ask a study for them."""
        assert not deepcopy, "copying them would cost more than all else"
        return [trial for trial in self._trials if trial.state in states]
