"""`ray up` on three hosts, a search over all of them, and one that goes down in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from ensembles.bank.posterior_bank import PosteriorBank
from search.tuning.study import open_journal
from tests.cluster.cloud import Cloud
from tests.cluster.hosts import PATIENCE_S, Hosts, wait_until, why_not
from tests.cluster.variants import FILE, own_hosts

reason = why_not()
pytestmark = [
    pytest.mark.cluster,
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
def store(hosts: Hosts, tiny_shards: Path) -> Iterator[Cloud]:
    """An object store that the hosts reach, with the shards."""
    with Cloud({}, hosts.outside) as cloud:
        client = cloud.client("s3")
        client.create_bucket(Bucket="corpora")
        for path in tiny_shards.iterdir():
            client.upload_file(str(path), "corpora", f"tiny/{path.name}")
        for host in range(hosts.count):
            hosts.set(host, **cloud.settings)
        yield cloud


@pytest.fixture(scope="module")
def cluster_file(hosts: Hosts) -> Path:
    """`cluster.yaml` for hosts that are there: its own commands, to the letter."""
    head, *workers = hosts.addresses
    text = FILE.read_text().replace("BUCKET", "corpora")
    document = own_hosts(yaml.safe_load(text), head, workers)
    document["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    path = hosts.folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, store: Cloud, cluster_file: Path) -> Iterator[str]:
    """A cluster that `ray up` made; yields its address."""
    hosts.ray("get-auth-token", "--generate")
    hosts.ray("up", "-y", "--no-config-cache", cluster_file)
    address = f"{hosts.addresses[0]}:6379"
    wait_until(lambda: len(alive(hosts, address)) == 3, "three hosts have joined")
    yield address


NODES = """
import json, sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("alive:", json.dumps([n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]]))
"""


def on_head(
    hosts: Hosts, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a Python program on the head."""
    return subprocess.Popen(
        hosts.command(0, sys.executable, *arguments),
        cwd=FILE.parent,
        env=hosts.environment(0, **(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alive(hosts: Hosts, address: str) -> list[str]:
    """Addresses of the hosts that the head knows to be alive."""
    process = on_head(hosts, "-c", NODES, address)
    out, _ = process.communicate(timeout=PATIENCE_S)
    # Ray may print lines of its own, before and after.
    said = [line for line in out.splitlines() if line.startswith("alive: ")]
    return list(json.loads(said[0].removeprefix("alive: "))) if said else []


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
    hosts: Hosts, cluster: str, store: Cloud, tmp_path: Path
) -> None:
    arguments = ["--address", cluster, "--data", "s3://corpora/tiny", "--no-steps"]
    arguments += ["--runs-dir", str(tmp_path / "runs")]
    process = on_head(hosts, "-m", "search.doctor", *arguments, env=store.settings)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    assert "the same versions on 3 hosts" in out
    assert f"the runs' folder '{tmp_path / 'runs'}' is shared" in out
    assert out.count("shards in 's3://corpora/tiny' can be read") == 3


def test_a_shell_on_the_head_joins_the_cluster_by_itself(hosts: Hosts, cluster: str) -> None:
    process = subprocess.run(
        hosts.command(0, "bash", "--login", "-i", "-c", "ray status && echo $EMOTION_RUNS"),
        env=hosts.environment(0),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert process.returncode == 0, process.stderr
    assert "3.0 CPU" in process.stdout, process.stdout
    assert "s3://corpora/runs" in process.stdout


def test_every_host_has_the_code_and_the_token_for_its_owner_alone(
    hosts: Hosts, cluster: str
) -> None:
    for host in range(hosts.count):
        token = hosts.home(host) / ".ray" / "auth_token"
        assert token.read_text() == (hosts.home(None) / ".ray" / "auth_token").read_text()
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert (hosts.home(host) / "emotion-search" / "search" / "run.py").exists()


def test_a_wrong_token_is_one_line(
    hosts: Hosts, cluster: str, store: Cloud, tmp_path: Path
) -> None:
    arguments = ["--address", cluster, "--data", "s3://corpora/tiny"]
    arguments += ["--protocol", "speaker-kfold:2", "--runs-dir", str(tmp_path / "runs")]
    env = {**store.settings, "RAY_AUTH_TOKEN": "0" * 64}
    process = on_head(hosts, "-m", "search.run", *arguments, env=env)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, err
    assert f"error: Cannot join the Ray cluster at '{cluster}'" in err


def test_a_host_that_goes_down_and_comes_back_costs_no_trial(
    hosts: Hosts, cluster: str, cluster_file: Path, store: Cloud, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "night"
    arguments = [
        "--address",
        cluster,
        "--data",
        "s3://corpora/tiny",
        "--trials",
        "15",
        "--page=false",
    ]
    arguments += ["--protocol", "speaker-kfold:2", "--runs-dir", str(tmp_path / "runs")]
    arguments += ["--only", "functionals,action_units,frame_cnn,logmel_resnet,concatenation"]
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--name", "night", "--seed", "3"]
    process = on_head(hosts, "-m", "search.run", *arguments, env=store.settings)

    def finished() -> int:
        assert process.poll() is None, process.communicate()
        return len(list((run / "bank").glob("*@100.npz")))

    wait_until(lambda: finished() >= 3, "three trials have finished")
    hosts.lose(2)
    wait_until(lambda: finished() >= 6, "the others go on")
    document = yaml.safe_load(cluster_file.read_text())
    start = f". ~/.bashrc; export RAY_HEAD_IP={hosts.addresses[0]}; "
    start += document["worker_start_ray_commands"][-1]
    subprocess.run(hosts.command(2, "bash", "-c", start), env=hosts.environment(2), check=True)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err

    found = trials(run)
    assert len(found) == 15
    assert {trial["state"] for trial in found} <= {"COMPLETE", "PRUNED"}, found
    bank = PosteriorBank.open(run / "bank")
    complete = {trial["name"] for trial in found if trial["state"] == "COMPLETE"}
    assert complete == {e.name for e in bank.read() if e.percent == 100} & complete
    assert bank.damaged == []
    assert "15 trials finished" in out or "stopped early, 0 failed" in out
    assert trained_on(run) >= set(hosts.addresses[:2]), "more than one host trained"


@pytest.fixture()
def tunnel(hosts: Hosts, cluster: str, cluster_file: Path) -> Iterator[str]:
    """`ray dashboard`, as it runs beside the user; yields the dashboard's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "ray", "dashboard", "-p", str(port), cluster_file]
    process = subprocess.Popen(
        command,
        env=hosts.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def listens() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    wait_until(listens, "the dashboard's port is here")
    yield f"http://localhost:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


def test_a_search_is_submitted_from_outside_and_kept_in_the_bucket(
    hosts: Hosts, tunnel: str, store: Cloud
) -> None:
    arguments = ["--address", tunnel, "--data", "s3://corpora/tiny", "--name", "submitted"]
    arguments += [
        "--protocol",
        "speaker-kfold:2",
        "--only",
        "functionals",
        "--trials",
        "2",
        "--page=false",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "search.run", *arguments],
        cwd=FILE.parent,
        env=hosts.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials finished" in done.stdout
    kept = store.client("s3").list_objects_v2(Bucket="corpora", Prefix="runs/submitted/")[
        "Contents"
    ]
    assert "runs/submitted/summary.json" in {entry["Key"] for entry in kept}


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
    out, err = process.communicate(timeout=PATIENCE_S)
    names, code = out.splitlines()
    assert process.returncode == 0, err
    listed = set(json.loads(names))
    assert {"audio-0000 functionals", "video-0000 action_units"} <= listed, sorted(listed)[:50]
    assert code == "401"


def test_ray_down_leaves_nothing(hosts: Hosts, cluster: str, cluster_file: Path) -> None:
    hosts.ray("down", "-y", cluster_file)
    wait_until(
        lambda: not any(hosts.processes(host) for host in range(hosts.count)),
        "nothing runs on the hosts",
    )
    assert [hosts.processes(host) for host in range(hosts.count)] == [[]] * hosts.count
