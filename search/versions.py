"""Tested versions of Ray and Optuna, whose private names this program uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from search.config import ConfigError

TESTED = {"ray": "2.60", "optuna": "5.0"}
"""Minor versions, as `pyproject.toml` pins them."""


@contextmanager
def private_names(package: str) -> Iterator[None]:
    """Turn a missing private name into an error that says which version has it.

    Raises:
        ConfigError: Names the package, its version here, and the one that was tested.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{package} {version(package)} lacks a name that this program uses ({error}). "
            f"Install version {TESTED[package]}: pip install -c constraints.txt {package}"
        ) from error
