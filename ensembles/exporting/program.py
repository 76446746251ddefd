"""An export's own program: which of this project's modules it is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ensembles
from ensembles.artifact.manifest import SCRIPT, SOURCES

ENTRY = "ensembles.artifact.standalone"
_ROOT = Path(ensembles.__file__).parents[1]


def program_files() -> dict[str, Path]:
    """File in the export's folder → file of this project that is copied there."""
    files: dict[str, Path] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        place = SCRIPT if name == ENTRY else f"{SOURCES}/{path.relative_to(_ROOT).as_posix()}"
        if place not in files and path.is_file():
            files[place] = path
            waiting += _imported(path)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return files


def _file_of(module: str) -> Path:
    path = _ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(path: Path) -> Iterator[str]:
    """Modules of `datasets` and `ensembles`, and names in them, that a file imports when it is imported."""
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] in ("datasets", "ensembles"))
