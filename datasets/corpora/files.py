"""Find a corpus's files, and report folders that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from datasets.clips import DataError


def files_under(root: Path, suffixes: Collection[str]) -> list[Path]:
    """The files with one of some suffixes (in lower case, with the dot) in a folder and all below, sorted.

    Raises:
        DataError: Names a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read '{error.filename or root}': {error.strerror or error}.")

    return sorted(
        path
        for folder, _, names in os.walk(root, onerror=refuse)
        for path in (Path(folder, name) for name in names)
        if path.suffix.lower() in suffixes
    )
