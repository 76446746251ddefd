"""What Ray shows of trials, what it lets go when one is stopped, and who may reach it: one program, one Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ensembles.bank.posterior_bank import PosteriorBank
from search.data.bank_tables import clip_table
from search.data.training_data import TrainingData
from search.trial_config import TrialConfig
from tests.faults.injection import injection
from tests.runs.conftest import Launcher

PROGRAM = """
import json, pathlib, signal, sys, time, urllib.request
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with &
from dataclasses import replace
import psutil, ray
from ray.util.state import list_tasks
from search.cluster.connection import start_ray, stop_ray
from search.execution.trial_task import start
from search.trial_config import TrialConfig
from tests.specs import NO_CORPUS, context_of, spec_of

PATIENCE_S = 300
given = json.load(sys.stdin)
corpus = replace(NO_CORPUS, **given["corpus"])
url = start_ray(None, 2, dashboard=True)
node = ray.nodes()[0]
page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
found = {"ended": {}, "titled": {}}

def trial(name, runner="actor", **training):
    plan = TrialConfig.of("action_units", {}, {"epochs": 8, **training})
    context = context_of(given["run"], corpus, runner=runner)
    return replace(spec_of(name, plan, context), modality="video")

def percents(stream, name):
    seen = []
    try:
        for rung in stream:
            seen.append(ray.get(rung)["percent"])
    except ray.exceptions.RayTaskError as error:
        found["ended"][name] = str(error.cause)
    return seen

def wait(what):
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return True

def shown(name):
    text = urllib.request.urlopen(page).read().decode()
    return [line for line in text.splitlines() if f'trial="{name}"' in line]

def free():
    return ray.available_resources().get("CPU", 0) == 2

# A trial of this process's, one that diverges, and what the metrics page has of them.
found["good"] = percents(start(trial("audio-0001")), "good")
wait(lambda: any("ray_emotion_trial_fold_score" in x and 'fold="1"' in x for x in shown("audio-0001")))
found["bad"] = percents(start(trial("audio-0002", learning_rate=1e30)), "bad")
found["forgotten"] = wait(lambda: not shown("audio-0001"))

# One that Tune stops after its first rung, while it waits in its next step.
def stop(name, runner):
    rungs = start(trial(name, runner), _generator_backpressure_num_objects=1)
    found[name] = [ray.get(next(rungs))["percent"]]
    wait(pathlib.Path(given["held"][name]).exists)
    title = f"ray::{name} action_units"
    found["titled"][name] = any(title in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    ray.cancel(rungs, force=False)
    wait(free)

stop("audio-0003", "actor")

# The same with Ray Train's workers; and one that is stopped while it waits for its place.
found["good of Train"] = percents(start(trial("video-0001", "train")), "good of Train")
found["bad of Train"] = percents(start(trial("video-0002", "train", learning_rate=1e30)), "bad of Train")
stop("video-0003", "train")
occupied = [ray.remote(num_cpus=1)(lambda: time.sleep(PATIENCE_S)).remote() for _ in range(2)]
wait(lambda: ray.available_resources().get("CPU", 0) == 0)
waiting = start(trial("video-0004", "train"), _generator_backpressure_num_objects=1)

def states():
    return {t.name: t.state for t in list_tasks(url, detail=True)}

wait(lambda: states().get("video-0004 action_units") == "RUNNING")
groups = ray.util.placement_group_table
wait(lambda: any(group["state"] == "PENDING" for group in groups().values()))
ray.cancel(waiting, force=False)
wait(lambda: states()["video-0004 action_units"] != "RUNNING")
for reference in occupied:
    ray.cancel(reference, force=True)
wait(lambda: all(group["state"] == "REMOVED" for group in groups().values()))
wait(free)

tasks = {}

def all_ended():
    tasks.update({t.name: t for t in list_tasks(url, detail=True)})
    return all(tasks[n].state in ("FAILED", "FINISHED") for n in tasks if "action_units" in n)

wait(all_ended)
logs = ray._private.worker._global_node.get_logs_dir_path()
found["states"] = {name: task.state for name, task in tasks.items() if "action_units" in name}
found["error"] = tasks["audio-0002 action_units"].error_message
found["processes"] = len({tasks[f"audio-000{n} action_units"].worker_pid for n in (1, 2)})
found["logs"] = {p.name: p.read_text() for p in pathlib.Path(logs).glob("trial-*")}

# Whoever listens.
session = ray._private.worker.global_worker.node.get_session_dir_path()
mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
mine += [p for p in psutil.process_iter(["cmdline"]) if any(session in c for c in p.info["cmdline"] or [])]
listening = set()
for process in mine:
    try:
        listening |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"}
    except psutil.Error:
        pass
found["listening"] = sorted(listening)
found["left of the waiting"] = [g["state"] for g in groups().values() if g["state"] != "REMOVED"]
stop_ray()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def seen(
    tiny_data: TrainingData, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the program found, and the run's folder."""
    run = tmp_path_factory.mktemp("seen")
    PosteriorBank.create(run / "bank", clip_table(tiny_data))
    (run / "weights").mkdir()
    index, folds = tiny_data.cache.index, tiny_data.folds
    held = {name: str(run / name) for name in ("audio-0003", "video-0003")}
    corpus = {
        "place": index.root, "checksum": index.checksum, "protocol": folds.protocol,
        "folds": folds.fingerprint, "cache_folder": str(cache_folder), "cache_gb": 16.0,
    }  # fmt: skip
    given = {"run": str(run), "held": held, "corpus": corpus}
    # Two folds of one batch: the first rung comes after four steps.
    holds = injection(
        *({"kind": "hold", "trial": t, "step": 5, "file": file} for t, file in held.items())
    )
    launcher = Launcher(run, {}, {**holds, "RAY_metrics_report_interval_ms": "1000"})
    try:
        out = launcher.script(PROGRAM, stdin=json.dumps(given)).finish()
    finally:
        launcher.clean_up()
    return {**json.loads(out.splitlines()[-1]), "run": run}


def test_the_dashboard_has_a_trials_name_state_log_and_failure(seen: dict[str, Any]) -> None:
    assert seen["good"] == [25, 50, 75, 100]
    assert seen["bad"] == [0]
    assert seen["processes"] == 1, "both in one process"
    assert seen["forgotten"], "the metrics of a trial that ended are gone"
    assert seen["states"]["audio-0001 action_units"] == "FINISHED"
    assert seen["states"]["audio-0002 action_units"] == "FAILED"
    assert "NonFiniteLossError: The loss of fold" in seen["error"]
    assert "NonFiniteLossError" in seen["ended"]["bad"]
    run = seen["run"]
    logs = {name for name in seen["logs"] if "-audio-" in name}
    assert logs == {f"trial-{run.name}-audio-000{number}.log" for number in (1, 2, 3)}
    assert seen["titled"] == {"audio-0003": True, "video-0003": True}, "processes are called by their trials"
    log = (run / "logs" / "audio-0001.log").read_text()
    assert seen["logs"][f"trial-{run.name}-audio-0001.log"] == log
    rung = next(line for line in log.splitlines() if line.startswith("100 %"))
    folds = rung.split("(folds ")[1].split(")")[0].split()
    assert len(folds) == 2
    assert rung.count("(folds ") == 2, "scores and losses"


def test_a_trial_of_ray_train_is_a_task_by_its_name_too(seen: dict[str, Any]) -> None:
    assert seen["good of Train"] == [25, 50, 75, 100]
    assert seen["bad of Train"] == [0]
    assert "NonFiniteLossError: The loss of fold" in seen["ended"]["bad of Train"]
    assert seen["states"]["video-0001 action_units"] == "FINISHED"
    assert seen["states"]["video-0002 action_units"] == "FAILED"
    assert "NonFiniteLossError" in (seen["run"] / "logs" / "video-0002.log").read_text()


def test_a_stopped_trial_ends_though_its_shell_ignores_interrupts(seen: dict[str, Any]) -> None:
    """Its place was free again before the program went on."""
    bank = PosteriorBank.open(seen["run"] / "bank").read()
    for trial in ("audio-0003", "video-0003"):
        assert seen[trial] == [25]
        assert [entry.percent for entry in bank if entry.name == trial] == [25]


def test_a_trial_that_is_stopped_while_it_waits_for_its_place_leaves_none_behind(
    seen: dict[str, Any],
) -> None:
    assert seen["left of the waiting"] == []
    assert "video-0004" not in {e.name for e in PosteriorBank.open(seen["run"] / "bank").read()}


def test_nothing_of_a_search_on_this_machine_listens_beyond_it(seen: dict[str, Any]) -> None:
    assert seen["listening"]
    for address in seen["listening"]:
        assert address.removeprefix("::ffff:") == "127.0.0.1"
