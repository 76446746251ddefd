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
