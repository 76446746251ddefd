"""The house: what lies at the top level, and that no wrong package wins an import."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import datasets

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "search", "models", "datasets", "ensembles", "tests", "benchmarks", "docs", "cluster.yaml",
    "pyproject.toml", "constraints.txt", "requirements-inference.txt", "Makefile", "README.md",
    "CONTRIBUTING.md", "LICENSE", ".pre-commit-config.yaml", ".gitignore", ".ci",
}  # fmt: skip


def test_the_top_level_holds_what_it_should_and_no_more() -> None:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listing.stdout.splitlines()} == TOP_LEVEL


def test_datasets_is_ours() -> None:
    assert Path(str(datasets.__file__)).parent == ROOT / "datasets"


DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as they are linked to: lower case, hyphens, no signs."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    names: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        again = names.count(name)
        names.append(name)
        if again:
            names.append(f"{name}-{again}")
    return set(names)


def test_a_headings_anchor_has_no_signs_and_a_second_one_a_number(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    lines = ["# `run`, in short: A-B", "```", "# a comment", "```", "## [Twice](x.md)", "## Twice"]
    document.write_text("\n".join(lines))
    assert anchors(document) == {"run-in-short-a-b", "twice", "twice-1"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document if (ROOT / document).exists() else ROOT / "docs" / document
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), f"{document} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{document} links to {target}"


UPWARD = {
    "models": ("registry", "models.list"),
    "datasets": ("clips", "datasets.protocols.split"),
    "ensembles": ("metrics", "ensembles.fusion.rules"),
    "search": ("config", "search.run"),
}
"""A module low in each package, and one above it that it must not import."""


def _contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("package", UPWARD)
def test_an_import_that_points_upward_is_refused(package: str, tmp_path: Path) -> None:
    for name in UPWARD:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module, above = UPWARD[package]
    file = tmp_path / package / f"{module}.py"
    if not file.exists():
        file = tmp_path / package / module / "__init__.py"
    file.write_text(file.read_text() + f"\n\ndef _upward() -> None:\n    import {above}\n")
    done = _contracts(tmp_path)
    assert done.returncode == 1
    assert f"Layers of {package} BROKEN" in done.stdout
    assert done.stdout.count("BROKEN") == 1


@pytest.mark.parametrize("package", UPWARD)
def test_every_room_is_a_package_of_about_a_dozen_files(package: str) -> None:
    for folder in [ROOT / package, *(p for p in (ROOT / package).rglob("*") if p.is_dir())]:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if folder.name == "__pycache__" or not files:
            continue
        assert (folder / "__init__.py").is_file(), f"contracts pass {folder} over"
        assert len(files) <= 13, f"{folder} has {len(files)} files"
