"""Loggers of every trial: TensorBoard's event files always; MLflow and W&B where requested.

All of them are Tune's callbacks and run in the driver alone. The journal stays the only truth.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.logger import LoggerCallback
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from search.config import SearchConfig
from search.trial_spec import TrialSpec

_log = logging.getLogger(__name__)
_PROJECT = "emotion-search"
_RUNG_VALUES = ("percent", "score", "clips_per_second", "gpu_memory_mib")
_NOT_TOLD = ("epoch_losses", "config")
"""Parts of a report that are for TensorBoard alone."""


class TensorBoardCallback(LoggerCallback):
    """One folder of event files a trial, `tensorboard/TRIAL`, named as the trial is.

    Tune's own names its folders by trial id and knows no epochs between two reports. A trial
    that is continued tells all its rungs again, so its folder is written anew.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._ends: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's own snapshot is never restored."""
        return {}

    def log_trial_start(self, trial: Any) -> None:
        """Writes what the trial is."""
        name = str(trial)
        self._close(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        writer = SummaryWriter(str(self.folder / name), flush_secs=10)
        settings = flatten(_settings(trial))
        del settings["trial"]
        what, start, self._ends[name] = hparams(settings, {"score/mean": 0.0, "loss/mean": 0.0})
        writer.file_writer.add_summary(what)
        writer.file_writer.add_summary(start)
        self._writers[name] = writer

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Writes a rung, and the epochs since the last one; steps are epochs."""
        writer, epoch = self._writers.get(str(trial)), int(result.get("epoch", 0))
        if writer is None or result.get("failed"):
            return
        losses = result["epoch_losses"]
        for step, folds in enumerate(losses, start=epoch - len(losses) + 1):
            writer.add_scalar("loss/mean", sum(folds) / len(folds), step)
            for fold, loss in enumerate(folds):
                writer.add_scalar(f"loss/fold-{fold}", loss, step)
        writer.add_scalar("score/mean", result["score"], epoch)
        for fold, score in result["fold_scores"].items():
            writer.add_scalar(f"score/fold-{fold}", score, epoch)
        for name in ("percent", "clips_per_second", "gpu_memory_mib"):
            writer.add_scalar(name, result[name], epoch)
        writer.flush()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Closes the trial's file."""
        self._close(str(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Closes those that the end of the time cut off."""
        for name in list(self._writers):
            self._close(name)

    def _close(self, name: str) -> None:
        if writer := self._writers.pop(name, None):
            writer.file_writer.add_summary(self._ends.pop(name))
            writer.close()


def flatten(settings: Mapping[str, Any], before: str = "") -> dict[str, str | float | bool]:
    """`{"training": {"epochs": 20}}` → `{"training.epochs": 20}`; lists and None become text."""
    flat: dict[str, str | float | bool] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{before}{key}.")
        else:
            flat[before + key] = value if isinstance(value, str | float | int) else str(value)
    return flat


def loggers_for(config: SearchConfig, run: Path) -> list[LoggerCallback]:
    """TensorBoard's, and those that `log_to` names."""
    makers = {"mlflow": _mlflow, "wandb": WandbCallback}
    return [TensorBoardCallback(run), *(makers[name](run) for name in config.loggers)]


def _mlflow(run: Path) -> LoggerCallback:
    """Tune's own callback, to MLFLOW_TRACKING_URI or a file of the run."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Plain(MLflowLoggerCallback):
        def log_trial_start(self, trial: Any) -> None:
            whole, trial.config = trial.config, _settings(trial)
            super().log_trial_start(trial)
            trial.config = whole

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            super().log_trial_result(iteration, trial, _told(result))

    return Plain(
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{(run / 'mlflow.db').resolve()}",
        experiment_name=run.name,
    )


class WandbCallback(LoggerCallback):
    """A run of Weights & Biases a trial, written by the driver itself.

    Tune's own starts two processes a trial and kills them at the end; under load a run was lost
    without a word. Here a trial's run is complete before its end is reported.

    Args:
        run: The run's folder; its name is the group, and W&B's own files go to `wandb` in it.
    """

    def __init__(self, run: Path) -> None:
        self.group = run.name
        self.folder = run.resolve() / "wandb"
        self.folder.mkdir(exist_ok=True)
        self._runs: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's own snapshot is never restored."""
        return {}

    def log_trial_start(self, trial: Any) -> None:
        """Opens the trial's run with its settings."""
        import wandb

        name = str(trial)
        self._finish(name)
        try:
            self._runs[name] = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                group=self.group,
                name=name,
                dir=str(self.folder),
                config=_settings(trial),
                reinit="create_new",  # several trials at once in this process
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            _log.warning("%s is not logged to W&B: %s", name, error)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Logs a rung, and the losses of the epochs since the last one; steps are epochs."""
        run, epoch = self._runs.get(str(trial)), int(result.get("epoch", 0))
        if run is None or result.get("failed"):
            return
        losses = result["epoch_losses"]
        for step, folds in enumerate(losses, start=epoch - len(losses) + 1):
            run.log({"loss": sum(folds) / len(folds)}, step=step)
        scores = {f"fold_scores/{fold}": score for fold, score in result["fold_scores"].items()}
        run.log({**{name: result[name] for name in _RUNG_VALUES}, **scores}, step=epoch)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Waits until the trial's run is written, or uploaded."""
        self._finish(str(trial), exit_code=int(failed))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ends those that the end of the time cut off."""
        for name in list(self._runs):
            self._finish(name, exit_code=1)

    def _finish(self, name: str, exit_code: int = 0) -> None:
        if run := self._runs.pop(name, None):
            run.finish(exit_code=exit_code)


def _settings(trial: Any) -> dict[str, Any]:
    """Return the settings of the trial, without where the run's files are."""
    spec: TrialSpec = trial.config["spec"]
    return {"trial": spec.name, "modality": spec.modality, **spec.plan.to_json()}


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in _NOT_TOLD}
