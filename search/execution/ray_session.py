"""Ray for one run: started, or joined, when the first training needs it, and left at the end."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from rich.console import Console

from search.cluster.connection import start_ray, stop_ray, watched
from search.config import ConfigError, parse_duration
from search.execution import tuner
from search.monitoring.interrupt import Interrupt
from search.persistence.run_folder import RunFolder
from search.trial_spec import RunContext


class RaySession:
    """Starts Ray once, on demand; a run that has nothing left to train never pays for it.

    Args:
        run: Its folder.
        context: Of every trial.
        address: Of the cluster that was joined, or None for Ray on this machine alone.
        screen: Shows the dashboard's address, and what is waited for.
        interrupt: Whether the run is to end.

    Attributes:
        workers: How many trials run at the same time; None until Ray was started.
        dashboard: Its address; None without one.
    """

    def __init__(
        self,
        run: RunFolder,
        context: RunContext,
        address: str | None,
        screen: Console,
        interrupt: Interrupt,
    ) -> None:
        self.run, self.context, self.address = run, context, address
        self.screen, self.interrupt = screen, interrupt
        self.workers: int | None = None
        self.dashboard: str | None = None
        self._block: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._block:
            self._block.close()
        stop_ray()  # a cluster may have been joined though nothing was trained

    def start(self) -> None:
        """Starts or joins Ray, and finds how many trials fit at the same time.

        Raises:
            ConfigError: The cluster cannot be joined, or has no room for what was asked for.
        """
        if self._block:
            return
        config, runner = self.run.config, self.context.runner
        self.dashboard = start_ray(
            self.address,
            # Trials in processes of ours may share cores if the user says so; Train's may not.
            config.workers if runner == "actor" else None,
            # Without a dashboard Ray leaks what a stopped Train run held.
            dashboard=config.dashboard or runner == "train",
        )
        self.interrupt.watch_again()
        if self.dashboard:
            shown = f"dashboard: {self.dashboard} (the token: ray get-auth-token)"
            self.screen.print(shown, soft_wrap=True)
        self.workers = tuner.trials_at_once(
            config.workers,
            device=self.context.device,
            runner=runner,
            workers_per_trial=self.context.workers_per_trial,
            gpu_share=self.context.gpu_share,
            wait_seconds=parse_duration(config.wait) if self.address else 0.0,
            on_wait=lambda text: self.screen.print(text, highlight=False),
        )
        self._block = ExitStack()
        self._block.enter_context(watched(lambda why: self._leave(f"Ray has gone: {why}")))

    def _leave(self, why: str) -> None:
        """Ends the process at once: what waits for Ray would wait for ever."""
        shown = f"error: {self.run.interrupted_by(why)}"
        self.screen.print(shown, markup=False, highlight=False, soft_wrap=True)
        with suppress(OSError, ConfigError):
            self.run.mirror.finish()
        os._exit(2)
