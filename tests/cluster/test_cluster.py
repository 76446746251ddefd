"""`ray up` on three hosts, a search over all of them, and one that goes down in the middle."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import optuna
import pytest
import yaml
from moto.server import ThreadedMotoServer

from ensembles.bank import PosteriorBank
from search.sampler import open_journal
from tests.cluster.hosts import Hosts, wait_until, why_not

ROOT = Path(__file__).parents[2]
reason = why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(reason is not None, reason=str(reason)),
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """A head and two workers."""
    # A short path: Ray's sockets lie below it, and theirs may have 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="es", ignore_cleanup_errors=True) as folder,
        Hosts(Path(folder), 3) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def store(hosts: Hosts, tiny_shards: Path) -> Iterator[dict[str, str]]:
    """An object store that the hosts reach, with the shards; yields the settings to use it."""
    server = ThreadedMotoServer(ip_address=hosts.outside, port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="corpora")
    for path in tiny_shards.iterdir():
        client.upload_file(str(path), "corpora", f"tiny/{path.name}")
    yield settings
    server.stop()


@pytest.fixture(scope="module")
def cluster_file(hosts: Hosts, store: dict[str, str]) -> Path:
    """`cluster.yaml` for these hosts: its own commands, told what differs here."""
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    head, *workers = hosts.addresses
    document["provider"] |= {"head_ip": head, "worker_ips": workers}
    document["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    document["min_workers"] = document["max_workers"] = len(workers)
    settings = " ".join(f"{key}={value}" for key, value in store.items())
    # Each host asks its own network which it is: they share everything else.
    me = "$(ip -4 -o address show dev eth0 | sed 's/.* inet \\([0-9.]*\\).*/\\1/')"
    options = f"--num-cpus=1 --node-ip-address={me} --temp-dir={hosts.folder}/ray-{me}"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        document[key] = [
            command.replace("ray start", f"export {settings}; ray start {options}")
            for command in document[key]
        ]
    path = hosts.folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, cluster_file: Path) -> Iterator[str]:
    """A cluster that `ray up` made; yields its address."""
    call_ray("get-auth-token", "--generate")  # or the one that is there
    ray(cluster_file, "up", "-y", "--no-config-cache")
    address = f"{hosts.addresses[0]}:6379"
    wait_until(lambda: len(alive(hosts, address)) == 3, 90, "three hosts have joined")
    yield address


def ray(cluster_file: Path, verb: str, *options: str) -> None:
    """`ray up` and `ray down`, from outside of the cluster."""
    call_ray(verb, *options, str(cluster_file))


def call_ray(*arguments: str) -> None:
    """The `ray` command."""
    done = subprocess.run(
        [Path(sys.executable).parent / "ray", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment(**more: str) -> dict[str, str]:
    """The environment of every command: the token is in the home folder that ssh finds too."""
    home = pwd.getpwuid(os.geteuid()).pw_dir
    return {**os.environ, "HOME": home, "RAY_AUTH_MODE": "token", "COLUMNS": "160", **more}


NODES = """
import json, sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]]))
"""


def on_head(
    hosts: Hosts, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a Python program on the head."""
    return subprocess.Popen(
        hosts.command(0, sys.executable, *arguments),
        cwd=ROOT,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alive(hosts: Hosts, address: str) -> list[str]:
    """Addresses of the hosts that the head knows to be alive."""
    process = on_head(hosts, "-c", NODES, address)
    out, _ = process.communicate(timeout=60)
    return list(json.loads(out.splitlines()[-1])) if process.returncode == 0 else []


def trials(run: Path) -> list[dict[str, Any]]:
    """What the journal says of every trial."""
    storage = open_journal(run / "journal.log")
    found = []
    for modality in ("audio", "video", "early"):
        for trial in optuna.load_study(study_name=modality, storage=storage).get_trials():
            if trial.state != optuna.trial.TrialState.WAITING:
                name = f"{modality}-{trial.number:04d}"
                found.append({"name": name, "state": trial.state.name, **trial.user_attrs})
    return found


def test_the_doctor_finds_all_hosts_well(
    hosts: Hosts, cluster: str, store: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["--address", cluster, "--data", "s3://corpora/tiny", "--no-steps"]
    arguments += ["--runs-dir", str(tmp_path / "runs")]
    process = on_head(hosts, "-m", "search.doctor", *arguments, env=store)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    assert "the same versions on 3 hosts" in out
    assert f"the runs' folder '{tmp_path / 'runs'}' is shared" in out
    assert out.count("shards in 's3://corpora/tiny' can be read") == 3


def test_a_wrong_token_is_one_line(
    hosts: Hosts, cluster: str, store: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["--address", cluster, "--data", "s3://corpora/tiny"]
    arguments += ["--protocol", "speaker-kfold:2", "--runs-dir", str(tmp_path / "runs")]
    env = {**store, "RAY_AUTH_TOKEN": "0" * 64}
    process = on_head(hosts, "-m", "search.run", *arguments, env=env)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert f"error: Cannot join the Ray cluster at '{cluster}'" in err


def test_a_host_that_goes_down_and_comes_back_costs_no_trial(
    hosts: Hosts, cluster: str, cluster_file: Path, store: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "night"
    arguments = ["--address", cluster, "--data", "s3://corpora/tiny", "--trials", "15"]
    arguments += ["--protocol", "speaker-kfold:2", "--runs-dir", str(tmp_path / "runs")]
    arguments += ["--only", "functionals,action_units,frame_cnn,logmel_resnet,concatenation"]
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--name", "night", "--seed", "3"]
    process = on_head(hosts, "-m", "search.run", *arguments, env=store)

    def finished() -> int:
        assert process.poll() is None, process.communicate()
        return len(list((run / "bank").glob("*@100.npz")))

    wait_until(lambda: finished() >= 3, 240, "three trials have finished")
    hosts.lose(2)
    wait_until(lambda: finished() >= 6, 240, "the others go on")
    document = yaml.safe_load(cluster_file.read_text())
    start = f"export RAY_HEAD_IP={hosts.addresses[0]}; "
    start += document["worker_start_ray_commands"][-1]
    subprocess.run(hosts.command(2, "bash", "-c", start), check=True)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err

    found = trials(run)
    assert len(found) == 15
    assert {trial["state"] for trial in found} <= {"COMPLETE", "PRUNED"}, found
    bank = PosteriorBank.open(run / "bank")
    complete = {trial["name"] for trial in found if trial["state"] == "COMPLETE"}
    assert complete == {e.trial for e in bank.read() if e.percent == 100} & complete
    assert bank.damaged == []
    assert "15 trials finished" in out or "stopped early, 0 failed" in out
    assert trained_on(run) >= set(hosts.addresses[:2]), "more than one host trained"


def trained_on(run: Path) -> set[str]:
    """Addresses in the trials' own logs."""
    lines = [line for path in (run / "logs").glob("*.log") for line in path.read_text().split("\n")]
    return {line.rpartition(" on ")[2] for line in lines if ", setup " in line}


TASKS = """
import json, sys, urllib.request
from pathlib import Path
token = Path("~/.ray/auth_token").expanduser().read_text().strip()
url = "http://127.0.0.1:8265/api/v0/tasks?limit=10000&detail=0"
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
answer = json.load(urllib.request.urlopen(request))
print(json.dumps([task["name"] for task in answer["data"]["result"]["result"]]))
try:
    urllib.request.urlopen(url)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_the_dashboard_lists_the_trials_by_name_and_asks_for_the_token(
    hosts: Hosts, cluster: str
) -> None:
    process = on_head(hosts, "-c", TASKS)
    out, err = process.communicate(timeout=60)
    names, code = out.splitlines()
    assert process.returncode == 0, err
    listed = set(json.loads(names))
    assert {"audio-0000 functionals", "video-0000 action_units"} <= listed, sorted(listed)[:50]
    assert code == "401"


def test_ray_down_leaves_nothing(hosts: Hosts, cluster: str, cluster_file: Path) -> None:
    ray(cluster_file, "down", "-y")
    wait_until(
        lambda: not any(hosts.processes(host) for host in range(hosts.count)),
        120,
        "nothing runs on the hosts",
    )
