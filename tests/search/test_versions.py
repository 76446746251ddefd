from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from search.config import ConfigError
from search.versions import TESTED, private_names


def test_a_missing_private_name_says_which_version_has_it() -> None:
    with (
        pytest.raises(
            ConfigError, match=r"ray 2\.60\.\d+ lacks a name .*no_such.*Install version 2"
        ),
        private_names("ray"),
    ):
        from ray._private import no_such  # noqa: F401
    with pytest.raises(ConfigError, match=r"optuna 5\.0.*gone"), private_names("optuna"):
        raise AttributeError("gone")


def test_the_tested_versions_are_those_that_are_pinned() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for line in tomllib.loads(text)["project"]["dependencies"]:
        name = re.split(r"[\[<>=]", line)[0]
        if name in TESTED:
            assert f">={TESTED[name]}," in line
