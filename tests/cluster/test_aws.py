"""`ray up cluster.yaml` on AWS, from no worker to a spot node, to one on demand, to nothing.

EC2 is an imitation whose instances are hosts of network namespaces; Ray, ssh and the file's own
commands are real.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cloud import Cloud
from tests.cluster.hosts import PATIENCE_S, SUBNET, Hosts, wait_until, why_not
from tests.cluster.variants import FILE, images

reason = why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(reason is not None, reason=str(reason)),
]


@dataclass
class Setting:
    """A cloud, the hosts that its instances are, and the file for them."""

    cloud: Cloud
    hosts: Hosts
    file: Path

    def workers(self) -> list[tuple[str, str]]:
        """The running workers' addresses and markets."""
        found = [
            (str(i["PrivateIpAddress"]), str(i.get("InstanceLifecycle", "on demand")))
            for i in self.cloud.running()
        ]
        return [worker for worker in found if worker[0] != self.hosts.addresses[0]]

    def tidy(self) -> None:
        """An instance that is terminated takes its processes with it."""
        there = {address for address, _ in self.workers()}
        for host in range(1, self.hosts.count):
            if self.hosts.addresses[host] not in there:
                self.hosts.lose(host)


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    """`cluster.yaml` as it is, but for the network, the key and a shorter patience."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    with (
        tempfile.TemporaryDirectory(prefix="es", ignore_cleanup_errors=True) as folder,
        Hosts(Path(folder), 3) as hosts,
        Cloud(images(document), hosts.outside) as cloud,
    ):
        cloud.use_network(f"{SUBNET}.0/24")
        cloud.client("iam").create_instance_profile(InstanceProfileName="emotion-search")
        cloud.client("ec2").create_key_pair(KeyName="test")
        document["provider"]["use_internal_ips"] = True
        document["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        for node_type in document["available_node_types"].values():
            node_type["node_config"]["KeyName"] = "test"
        document["idle_timeout_minutes"] = 0.2
        file = hosts.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        for host in range(hosts.count):
            hosts.set(host, **cloud.settings)  # what the instance profile gives
        hosts.ray("get-auth-token", "--generate")
        hosts.ray("up", "-y", file, **cloud.settings)
        yield Setting(cloud, hosts, file)


TASK = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
task = ray.remote(num_gpus=1)(ray.util.get_node_ip_address)
print(ray.get(task.remote()))
"""


def where_a_gpu_task_runs(setting: Setting) -> str:
    """In a shell of the head, a task that needs what no node has."""
    process = subprocess.run(
        setting.hosts.command(0, "bash", "--login", "-i", "-c", 'python -c "$0"', TASK),
        env=setting.hosts.environment(0),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()[-1]


def test_nothing_but_the_head_is_launched_at_first(setting: Setting) -> None:
    addresses = [instance["PrivateIpAddress"] for instance in setting.cloud.running()]
    assert addresses == [setting.hosts.addresses[0]]


def test_a_task_for_a_gpu_brings_a_spot_node_that_goes_when_it_is_idle(setting: Setting) -> None:
    address = where_a_gpu_task_runs(setting)
    assert setting.workers() == [(address, "spot")]
    wait_until(lambda: not setting.workers(), "the idle node is terminated")
    setting.tidy()


def test_without_spot_capacity_the_task_runs_on_demand(setting: Setting) -> None:
    setting.cloud.spot = False
    address = where_a_gpu_task_runs(setting)
    assert setting.cloud.refused
    assert setting.workers() == [(address, "on demand")]


def test_ray_down_leaves_no_instance(setting: Setting) -> None:
    setting.hosts.ray("down", "-y", setting.file, **setting.cloud.settings)
    assert setting.cloud.running() == []
