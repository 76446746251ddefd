"""The house: what lies at the top level, and that no wrong package wins an import."""

from __future__ import annotations

import re
import subprocess
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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document if (ROOT / document).exists() else ROOT / "docs" / document
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{document} links to {target}"
