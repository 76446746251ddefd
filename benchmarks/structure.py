"""How the four packages are built: `python -m benchmarks.structure [FOLDER …]`.

For each checkout (default: this one): files and largest folder, lengths of functions and files, import circles
between modules, imports inside functions, and seconds to import the settings and to print the search's help.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("datasets", "models", "ensembles", "search")
START = {
    "import search.config": ["-c", "import search.config"],
    "--help": ["-m", "search.run", "--help"],
}


def main() -> None:
    """Print one column a checkout."""
    trees = [Path(name).resolve() for name in sys.argv[1:]] or [Path.cwd()]
    columns = [measure(tree) for tree in trees]
    for name in columns[0]:
        print(f"{name:52}" + "".join(f"{column[name]:>24}" for column in columns))


def measure(tree: Path) -> dict[str, str]:
    """Return what the table says of one checkout."""
    files = {path: path.read_text() for name in PACKAGES for path in (tree / name).rglob("*.py")}
    parsed = {path: ast.parse(text) for path, text in files.items()}
    folders = Counter(path.parent for path in files if path.name != "__init__.py")
    lengths = sorted(
        len(text.splitlines()) for path, text in files.items() if path.name != "__init__.py"
    )
    functions = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for one in parsed.values()
        for node in ast.walk(one)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    largest, count = folders.most_common(1)[0]
    edges = {_module(tree, path): set(_imports(one, top=True)) for path, one in parsed.items()}
    return {
        "files; lines": f"{len(files)}; {sum(lengths)}",
        "largest folder; median of folders": f"{count} ({largest.name}); {_at(sorted(folders.values()), 0.5)}",
        "function, lines: median / p90 / over 40": f"{_at(functions, 0.5)} / {_at(functions, 0.9)} / "
        f"{sum(n > 40 for n in functions) / len(functions):.1%}",
        "file, lines: median / p90 / longest": f"{_at(lengths, 0.5)} / {_at(lengths, 0.9)} / {lengths[-1]}",
        "import circles, also inside functions and for types": str(len(_circles(tree, parsed))),
        "imports of own modules inside functions": str(
            sum(len(set(_imports(one, top=False))) for one in parsed.values())
            - sum(map(len, edges.values()))
        ),
        **{name: f"{_seconds(tree, words):.2f} s" for name, words in START.items()},
    }


def _at(values: list[int], share: float) -> int:
    return values[int(share * (len(values) - 1))]


def _module(tree: Path, path: Path) -> str:
    return ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")


def _imports(module: ast.Module, *, top: bool) -> Iterator[str]:
    """Own modules that are imported: at the top level alone, or anywhere."""
    nodes = module.body if top else ast.walk(module)
    for node in nodes:
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in PACKAGES
        ):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _circles(tree: Path, parsed: dict[Path, ast.Module]) -> list[set[str]]:
    """Groups of modules that import each other, directly or not (Tarjan's algorithm)."""
    known = {_module(tree, path) for path in parsed if path.name != "__init__.py"}
    edges = {
        _module(tree, path): set(_imports(one, top=False)) & known
        for path, one in parsed.items()
        if path.name != "__init__.py"
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(group)

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def _seconds(tree: Path, words: list[str]) -> float:
    """The fastest of three."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=tree, capture_output=True, check=True)
        took.append(time.perf_counter() - started)
    return min(took)


if __name__ == "__main__":
    main()
