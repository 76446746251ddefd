"""A whole examination of this machine, as a process: it starts a Ray."""

from __future__ import annotations

from pathlib import Path

from tests.runs.conftest import Launcher


def test_a_whole_examination_of_this_machine(
    launch: Launcher, tiny_shards: Path, cache_folder: Path, tmp_path: Path
) -> None:
    out = launch.module(
        "search.doctor", "--data", tiny_shards, "--only", "functionals,action_units",
        "--cache-dir", cache_folder, "--runs-dir", tmp_path / "runs",
    ).finish()  # fmt: skip
    for line in ("the dashboard answers at", "functionals: a step runs", "48 trials: about"):
        assert line in out
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_not_there_is_an_error(launch: Launcher, tiny_shards: Path) -> None:
    out = launch.module(
        "search.doctor", "--data", tiny_shards, "--address", "127.0.0.1:1", "--no-steps"
    ).finish(2)
    assert "Cannot join the Ray cluster at '127.0.0.1:1'" in out


INTERFACE = """
import os, ray
hook = {"worker_process_setup_hook": "search.cluster.worker_setup.use_cluster_interface"}
ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env=hook, log_to_driver=False)
where = ray.remote(lambda: (os.environ["GLOO_SOCKET_IFNAME"], ray.util.get_node_ip_address()))
print(*ray.get(where.remote()))
"""


def test_workers_listen_where_the_cluster_knows_their_host(launch: Launcher) -> None:
    import psutil

    from tests.runs.process import ROOT

    interface, address = launch.script(INTERFACE, env={"PYTHONPATH": str(ROOT)}).finish().split()
    assert address in [a.address for a in psutil.net_if_addrs()[interface]]
