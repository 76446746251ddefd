"""`cluster.yaml`: Ray understands it, every value is explained, and what it sends is there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from search.cluster.node_scorer import score_node_type
from tests.cluster.variants import FILE, own_hosts

TEXT = FILE.read_text()


@pytest.fixture()
def document() -> dict[str, Any]:
    """The file."""
    return dict(yaml.safe_load(TEXT))


def unexplained(text: str) -> list[str]:
    """The values with a comment neither on their line nor on the one above."""
    lines = text.split("\n")

    def explained(line: int) -> bool:
        return " #" in lines[line] or lines[line - 1].lstrip().startswith("#")

    def walk(node: yaml.Node, line: int) -> Iterator[int]:
        if isinstance(node, yaml.ScalarNode) or node.flow_style or node.start_mark.line < line:
            if not explained(line):
                yield line
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield from walk(value, key.start_mark.line)
        else:
            items = [found for v in node.value for found in walk(v, v.start_mark.line)]
            scalars = all(isinstance(value, yaml.ScalarNode) for value in node.value)
            yield from [] if scalars and explained(line) else items

    document = yaml.compose(text, Loader=yaml.SafeLoader)
    return [lines[line].strip() for line in walk(document, 0)]


def test_every_value_is_explained() -> None:
    assert unexplained(TEXT) == []


def test_a_value_without_a_comment_is_found() -> None:
    text = "# Why.\na: 1\nb:\n  c: {d: 1}\n  e: 2  # so\nf:\n  # One.\n  - g\n  - h\n"
    assert unexplained(text) == ["c: {d: 1}", "- h"]


def test_ray_accepts_the_file_and_its_variant_for_own_hosts(document: dict[str, Any]) -> None:
    validate_config(prepare_config(document))
    local = own_hosts(document, "10.0.0.1", ["10.0.0.2", "10.0.0.3"])
    prepared = prepare_config(local)
    validate_config(prepared)
    assert prepared["max_workers"] == 2
    (node_type,) = prepared["available_node_types"].values()
    assert (node_type["min_workers"], node_type["max_workers"]) == (2, 2)


def test_every_start_command_turns_the_token_on(document: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in document[key] if "ray start" in command]
        assert starts
        for command in starts:
            before, _, _ = command.partition("ray start")
            assert "export RAY_AUTH_MODE=token" in before


def test_the_dashboard_listens_on_the_head_alone(document: dict[str, Any]) -> None:
    (start,) = [c for c in document["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start


def test_what_is_sent_is_there_and_holds_no_large_folder(document: dict[str, Any]) -> None:
    sent = [Path(p) for p in document["file_mounts"].values() if not p.startswith("~")]
    assert all((FILE.parent / path).exists() for path in sent), sent
    assert Path() not in sent
    code = {path.parent.name for path in FILE.parent.glob("*/__init__.py")} - {"tests"}
    assert {path.name for path in sent} >= code - {"benchmarks"}


@pytest.mark.parametrize("ready", [True, False])
def test_the_setup_installs_only_where_the_packages_are_not_there(
    document: dict[str, Any], tmp_path: Path, ready: bool
) -> None:
    log = tmp_path / "log"
    for name in ("make", "sudo", "cloud-init"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n[ "$1" != --question ]\n')
        if ready:
            stub.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        stub.chmod(0o755)
    (tmp_path / "emotion-search").mkdir()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch(0o644)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    for _ in range(2):  # as when the file was changed
        for command in document["setup_commands"] + document["head_setup_commands"]:
            subprocess.run(["bash", "-c", f"({command})"], env=env, check=True)
    asked = ["make --question .venv/.ready"]
    install = [
        "cloud-init status --wait",
        "sudo apt-get -qq update",
        "sudo apt-get -qq --yes -o DPkg::Lock::Timeout=600 install make python3-venv",
        "make .venv/.ready",
    ]
    assert log.read_text().splitlines() == (asked if ready else asked + install) * 2
    assert (tmp_path / ".bashrc").read_text() == ". ~/.emotion-search.sh\n"
    shown = 'echo "$PATH $RAY_AUTH_MODE $EMOTION_RUNS $RAY_ADDRESS"'
    shell = ["bash", "-c", f". ~/.bashrc; {shown}"]
    out = subprocess.run(shell, env=env, check=True, capture_output=True, text=True).stdout
    path = f"{tmp_path}/emotion-search/.venv/bin:{env['PATH']}"
    assert out == f"{path} token s3://BUCKET/runs auto\n"


def test_no_gpu_node_is_launched_for_what_needs_no_gpu() -> None:
    tracker = NodeProviderAvailabilityTracker()
    gpu, cpu = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}
    waiting = [{"CPU": 1.0}]
    scores = [
        score_node_type(node, waiting, "any", node_availability_summary=tracker.summary())
        for node in (gpu, cpu, {"CPU": 0.5})
    ]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] < scores[1]
    assert scores[2] is None
