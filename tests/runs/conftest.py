"""Whole runs in processes of their own; the finished ones that several tests read are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs.process import Command
from tests.shared import Shared
from tests.small_run import JointCorpus


class Launcher:
    """Starts commands, and ends whatever is left of them when the test is over.

    Args:
        folder: For what they print.
        defaults: Options that every search has, unless a test names others.
        env: Of every process.
    """

    def __init__(self, folder: Path, defaults: dict[str, object], env: dict[str, str]) -> None:
        self.folder, self.defaults, self.env = folder, defaults, env
        self.started: list[Command] = []

    def search(self, *, env: dict[str, str] | None = None, **options: object) -> Command:
        """`python -m search.run` with the defaults and these options; None leaves one out."""
        return self.module("search.run", *_flags({**self.defaults, **options}), env=env)

    def go_on(self, *, env: dict[str, str] | None = None, **options: object) -> Command:
        """`python -m search.run` with `resume=` or `extend=`, and the folder of the runs."""
        options = {"runs_dir": self.defaults["runs_dir"], **options}
        return self.module("search.run", *_flags(options), env=env)

    def module(self, name: str, *arguments: object, env: dict[str, str] | None = None) -> Command:
        """`python -m NAME …`."""
        return self._start(["-m", name, *map(str, arguments)], env)

    def script(self, code: str, stdin: str = "", env: dict[str, str] | None = None) -> Command:
        """`python -c …`."""
        return self._start(["-c", code], env, stdin)

    def _start(
        self, arguments: list[str], env: dict[str, str] | None, stdin: str | None = None
    ) -> Command:
        command = Command(arguments, self.folder, {**self.env, **(env or {})}, stdin=stdin)
        self.started.append(command)
        return command

    def clean_up(self) -> None:
        """Ends everything."""
        for command in self.started:
            command.clean_up()


def _flags(options: dict[str, object]) -> list[str]:
    flags = []
    for name, value in options.items():
        if isinstance(value, bool):
            flags.append(f"--{name.replace('_', '-')}={str(value).lower()}")
        elif value is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


QUICKLY = {"workers": 1, "seed": 3, "dashboard": False, "page": False, "address": "local"}
"""One trial at a time and no page, on this machine alone."""


@pytest.fixture()
def launch(tiny_shards: Path, cache_folder: Path, tmp_path: Path) -> Iterator[Launcher]:
    """Searches of the tiny corpus: two folds, three cheap experts, four epochs a trial."""
    launcher = Launcher(
        tmp_path,
        {
            "data": tiny_shards, "protocol": "speaker-kfold:2", "runs_dir": tmp_path / "runs",
            "only": "functionals,action_units,concatenation", "trials": 6, "epochs": 4, **QUICKLY,
        },
        {"EMOTION_CACHE": str(cache_folder)},
    )  # fmt: skip
    yield launcher
    launcher.clean_up()


class Searched:
    """A finished run, to be read; who changes it copies it first.

    Attributes:
        run: Its folder.
        out: What was printed.
        err: What was shown on the way.
    """

    def __init__(self, run: Path, out: str, err: str) -> None:
        self.run, self.out, self.err = run, out, err


def search_options(joint: JointCorpus, runs: Path) -> dict[str, object]:
    """The search that the shared runs make, with all that a run can leave."""
    return {
        "data": joint.shards, "protocol": "speaker-kfold:3", "test_speakers": "speaker_03",
        "only": "functionals,frame_cnn,action_units,concatenation", "trials": 6, "epochs": 4,
        "metric": "uar", "confirm_seeds": 1, "keep_weights": "chosen", "runs_dir": runs, **QUICKLY,
    }  # fmt: skip


@pytest.fixture()
def launch_joint(joint: JointCorpus, cache_folder: Path, tmp_path: Path) -> Iterator[Launcher]:
    """The search of `searched`, in a folder of the test's own."""
    options = search_options(joint, tmp_path / "runs")
    launcher = Launcher(tmp_path, options, {"EMOTION_CACHE": str(cache_folder)})
    yield launcher
    launcher.clean_up()


@pytest.fixture(scope="session")
def searched(joint: JointCorpus, cache_folder: Path, shared: Shared) -> Searched:
    """A whole search by reused processes, with its page, fresh seeds and test speakers."""
    return shared.make("searched", _searching(joint, cache_folder, name="whole", page=True))


@pytest.fixture(scope="session")
def searched_by_train(joint: JointCorpus, cache_folder: Path, shared: Shared) -> Searched:
    """The first trials of `searched` again, by Ray Train workers."""
    options = {"runner": "train", "trials": 3, "confirm_seeds": 0, "keep_weights": "all"}
    return shared.make(
        "searched-by-train", _searching(joint, cache_folder, name="trained", **options)
    )


def _searching(
    joint: JointCorpus, cache_folder: Path, **options: Any
) -> Callable[[Path], Searched]:
    def build(folder: Path) -> Searched:
        launcher = Launcher(
            folder, search_options(joint, folder / "runs"), {"EMOTION_CACHE": str(cache_folder)}
        )
        try:
            command = launcher.search(**options)
            command.finish()
        finally:
            launcher.clean_up()
        return Searched(folder / "runs" / options["name"], command.out, command.err)

    return build
