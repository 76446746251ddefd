"""`cluster.yaml`: Ray understands it, every value is explained, and it launches what it says.

Ray's own code launches here, against an imitation of EC2.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.providers import _clear_provider_cache, _get_node_provider
from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
from ray.autoscaler._private.util import ConcurrentCounter, prepare_config, validate_config

from search.capacity import score_node_type
from tests.cluster.cloud import Cloud
from tests.cluster.variants import FILE, images, own_hosts, policy

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


# What EC2 is asked for.


@dataclass
class Launched:
    """What `ray up` left: an EC2 with a head, and what the head would know."""

    cloud: Cloud
    file: Path
    document: dict[str, Any]
    config: dict[str, Any]

    def image(self, node_type: str) -> str:
        """The one that the type's parameter leads to."""
        config = self.document["available_node_types"][node_type]["node_config"]
        return images(self.document)[config["ImageId"].removeprefix("resolve:ssm:")]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """`ray up` as far as a head that never answers; the user has made the instance profile."""
    folder = tmp_path_factory.mktemp("home")
    document = yaml.safe_load(TEXT)
    document["auth"]["ssh_proxy_command"] = "false"  # nobody is called
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(document))
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0" * 64)
    with Cloud(images(document)) as cloud, pytest.MonkeyPatch.context() as patch:
        own = {"HOME": str(folder), "TMPDIR": str(folder), "AUTOSCALER_NODE_START_WAIT_S": "0"}
        for key, value in {**cloud.settings, **own}.items():
            patch.setenv(key, value)
        patch.setattr(tempfile, "tempdir", str(folder))  # Ray keeps there what it found out
        patch.chdir(FILE.parent)
        make_profile(cloud.client("iam"))
        forget_clients()
        done = ray("up", file)
        assert "wait_ready timeout exceeded" in done.stdout + done.stderr
        yield Launched(cloud, file, document, _bootstrap_config(document))
        forget_clients()


def make_profile(iam: Any) -> None:
    """As the guide says; its policy is checked on the way."""
    name = "emotion-search"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=policy())
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def forget_clients() -> None:
    """Ray keeps them for as long as its process lives."""
    aws_utils.resource_cache.cache_clear()
    aws_utils.client_cache.cache_clear()
    aws_config._get_subnets_or_die.cache_clear()
    _clear_provider_cache()


def ray(verb: str, file: Path) -> subprocess.CompletedProcess[str]:
    """`ray up` or `ray down`."""
    command = [Path(sys.executable).parent / "ray", verb, "-y", file]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def launch(config: dict[str, Any], node_type: str, tracker: NodeProviderAvailabilityTracker) -> Any:
    """What the autoscaler on the head does to launch a node."""
    pending = ConcurrentCounter()
    pending.inc(node_type, 1)
    launcher = BaseNodeLauncher(
        _get_node_provider(config["provider"], config["cluster_name"]),
        pending,
        _Events(),
        tracker,
        node_types=config["available_node_types"],
    )
    return launcher.launch_node(config, 1, node_type)


class _Events:
    def add(self, *_: Any, **__: Any) -> None: ...


def only(items: Any) -> Any:
    (item,) = items
    return item


def disk(cloud: Cloud, instance: dict[str, Any]) -> tuple[int, str, bool, bool]:
    """GiB and type of the root disk; whether it goes with its instance, and is encrypted."""
    mapping = only(instance["BlockDeviceMappings"])["Ebs"]
    ec2 = cloud.client("ec2")
    volume = only(ec2.describe_volumes(VolumeIds=[mapping["VolumeId"]])["Volumes"])
    return volume["Size"], volume["VolumeType"], mapping["DeleteOnTermination"], volume["Encrypted"]


def test_the_head_is_a_node_on_demand_without_a_gpu(launched: Launched) -> None:
    head = launched.cloud.instances()[0]
    assert head["InstanceType"] == "m6i.xlarge"
    assert "InstanceLifecycle" not in head
    assert head["ImageId"] == launched.image("head")
    assert head["IamInstanceProfile"]["Arn"].endswith("/emotion-search")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert {"Key": "ray-cluster-name", "Value": "emotion-search"} in head["Tags"]
    assert disk(launched.cloud, head) == (80, "gp3", True, True)
    resources = launched.config["available_node_types"]["head"]["resources"]
    assert (resources["CPU"], resources.get("GPU")) == (4, None)


@pytest.mark.parametrize(("node_type", "market"), [("gpu_spot", "spot"), ("gpu_on_demand", None)])
def test_workers_are_gpu_nodes_of_their_market(
    launched: Launched, node_type: str, market: str | None
) -> None:
    cloud = launched.cloud
    before = {instance["InstanceId"] for instance in cloud.instances()}
    launch(launched.config, node_type, NodeProviderAvailabilityTracker())
    worker = only(i for i in cloud.instances() if i["InstanceId"] not in before)
    assert worker["InstanceType"] == "g6.xlarge"
    assert worker.get("InstanceLifecycle") == market
    assert worker["ImageId"] == launched.image(node_type)
    assert worker["IamInstanceProfile"]["Arn"].endswith("/emotion-search")
    assert worker["SecurityGroups"] == cloud.instances()[0]["SecurityGroups"]
    assert disk(cloud, worker) == (160, "gp3", True, True)
    assert launched.config["available_node_types"][node_type]["resources"]["GPU"] == 1


def test_no_port_but_ssh_is_open_to_the_world(launched: Launched) -> None:
    types = launched.config["available_node_types"].values()
    group = only({g for t in types for g in t["node_config"]["SecurityGroupIds"]})
    ec2 = launched.cloud.client("ec2")
    rules = only(ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"])["IpPermissions"]
    outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    rule = only(outside)
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 22, 22)
    inside = [rule for rule in rules if rule not in outside]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group]


def next_type(config: dict[str, Any], tracker: NodeProviderAvailabilityTracker) -> str:
    """The type that the autoscaler launches for a trial that waits for a GPU."""

    def score(node_resources: Any, resources: Any, node_type: str) -> Any:
        return score_node_type(
            node_resources, resources, node_type, node_availability_summary=tracker.summary()
        )

    types, running = config["available_node_types"], {"head": 1}
    chosen, _ = get_nodes_for(types, running, "head", 4, [{"GPU": 1.0, "CPU": 1.0}], score)
    return str(only(chosen))


def test_without_spot_capacity_a_node_on_demand_is_launched_and_later_spot_again(
    launched: Launched,
) -> None:
    cloud, config = launched.cloud, launched.config
    now = [time.time()]
    tracker = NodeProviderAvailabilityTracker(timer=lambda: now[0], ttl=1800)
    assert next_type(config, tracker) == "gpu_spot"

    cloud.spot = False
    assert not launch(config, "gpu_spot", tracker)
    zones = len(cloud.client("ec2").describe_subnets()["Subnets"])
    assert cloud.refused == zones  # it was tried in all of them
    assert next_type(config, tracker) == "gpu_on_demand"
    (instance,) = launch(config, "gpu_on_demand", tracker).values()
    assert instance.instance_lifecycle is None

    now[0] += 1801
    assert next_type(config, tracker) == "gpu_spot"


def test_ray_down_leaves_neither_an_instance_nor_a_disk(launched: Launched) -> None:
    assert launched.cloud.running()
    done = ray("down", launched.file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert launched.cloud.running() == []
    assert launched.cloud.client("ec2").describe_volumes()["Volumes"] == []


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
