"""`ray up cluster.yaml` launches what the file says: Ray's own code, against an imitation of EC2."""

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
from ray.autoscaler._private.util import ConcurrentCounter

from search.cluster.node_scorer import score_node_type
from tests.cluster.cloud import Cloud
from tests.cluster.variants import FILE, images, policy

pytestmark = pytest.mark.cluster


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
    document = yaml.safe_load(FILE.read_text())
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

    cloud.spot = True
    now[0] += 1801
    assert next_type(config, tracker) == "gpu_spot"


def test_ray_down_leaves_neither_an_instance_nor_a_disk(launched: Launched) -> None:
    assert launched.cloud.running()
    done = ray("down", launched.file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert launched.cloud.running() == []
    assert launched.cloud.client("ec2").describe_volumes()["Volumes"] == []
