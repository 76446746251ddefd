"""A campaign of faults: `make test-faults`. Each is followed by `--resume`; nothing may be lost.

A small search runs once undisturbed. Then, for every fault, the same search is disturbed by
it at a moment drawn from a seed, and continued. What had finished before the continuation
must be there afterwards, unchanged (else: lost), and must not have been trained again (else:
repeated); where the fault does not change what a trial finds, the journal must end equal to
that of the undisturbed search. Writes the table to docs/faults.md.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import optuna
import psutil
from moto.server import ThreadedMotoServer

from datasets.corpora.synthetic import load_synthetic
from datasets.storage.synced_folder import working_copy
from ensembles.bank.posterior_bank import PosteriorBank
from search.tuning.study import open_journal
from tests.faults.injection import injection
from tests.faults.storage import Trouble, small_disk
from tests.tiny import make_tiny_shards

ROOT = Path(__file__).parents[2]
TRIALS = 7
SEARCH = [
    "--protocol", "speaker-kfold:2", "--only", "functionals,action_units,concatenation",
    "--trials", str(TRIALS), "--workers", "1", "--seed", "3", "--dashboard=false", "--page=false",
]  # fmt: skip
ENTRIES = 4 * TRIALS
"""Of the bank, when no trial is stopped early."""

State = dict[str, Any]


class Bench:
    """Runs searches over one tiny corpus, and looks at what they leave.

    Attributes:
        folder: For everything.
        expected: The undisturbed search's journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shards = folder, folder / "tiny"
        make_tiny_shards(load_synthetic(folder / "media", speakers=4, repetitions=1), self.shards)
        self.expected: State = {}

    def env(self, **more: str) -> dict[str, str]:
        """Of every process."""
        return {**os.environ, "EMOTION_CACHE": str(self.folder / "cache"), "COLUMNS": "150", **more}

    def launch(self, *arguments: object, **env: str) -> subprocess.Popen[str]:
        """`python -m search.run …`, as the leader of a process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "search.run", *map(str, arguments)],
            cwd=ROOT,
            env=self.env(**env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@dataclass
class Run:
    """One disturbed run.

    Attributes:
        bench: Where.
        name: Its name.
        draw: Random moments and victims.
        runs_dir: Where it is kept.
        env: Of its processes.
        changes: Whether the fault changes what trials find.
        note: What the disturbed process said.
        more: Arguments of the search besides the usual ones.
        data: Its shards, if they are its own.
        recovered: Seconds to the next result, where the run went on by itself.
        stack: Of what is to be put away afterwards.
    """

    bench: Bench
    name: str
    draw: random.Random
    runs_dir: str = ""
    env: dict[str, str] = field(default_factory=dict)
    changes: bool = False
    note: str = ""
    more: list[str] = field(default_factory=list)
    data: Path | None = None
    recovered: float | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.runs_dir = self.runs_dir or str(self.bench.folder / "runs")

    @property
    def path(self) -> Path:
        """Its folder, on this machine."""
        if "://" in self.runs_dir:
            return working_copy(f"{self.runs_dir}/{self.name}", self.bench.folder / "cache")
        return Path(self.runs_dir) / self.name

    def start(self) -> subprocess.Popen[str]:
        """Begins the search."""
        data = self.data or self.bench.shards
        where = ["--data", str(data), "--runs-dir", self.runs_dir, "--name", self.name]
        return self.bench.launch(*SEARCH, *self.more, *where, **self.env)

    def resume(self, **env: str) -> subprocess.Popen[str]:
        """Continues it."""
        where = ["--resume", self.name, "--runs-dir", self.runs_dir, "--time-budget", "9m"]
        return self.bench.launch(*where, **{**self.env, **env})

    def entries(self) -> int:
        """Of the bank, so far."""
        return len(list((self.path / "bank").glob("*.npz")))

    def wait(self, process: subprocess.Popen[str], entries: int) -> None:
        """Until the bank holds so many."""
        deadline = time.monotonic() + 300
        while self.entries() < entries and process.poll() is None:
            assert time.monotonic() < deadline, "it does not get on"
            time.sleep(0.01)

    def wait_somewhere(self, process: subprocess.Popen[str]) -> None:
        """Until a moment drawn at random."""
        self.wait(process, self.draw.randint(1, ENTRIES - 8))
        time.sleep(self.draw.uniform(0.0, 0.3))

    def end(self, process: subprocess.Popen[str]) -> int:
        """Waits for the end; keeps the last line it said."""
        _, err = process.communicate(timeout=400)
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error")]
        self.note = (errors or lines or [""])[-1]
        assert "Traceback" not in err, err
        return process.returncode

    def state(self) -> State:
        """Every trial that the journal has, and how it stands."""
        path = self.path / "journal.log"
        if not path.exists():
            return {}
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(path, folder))
            content = copy.read_bytes()
            copy.write_bytes(content[: content.rfind(b"\n") + 1])
            storage = open_journal(copy)
            return {
                f"{study.study_name}-{trial.number:04d}": (
                    trial.state.name, trial.params, trial.values, trial.intermediate_values,
                )
                for study in optuna.get_all_study_summaries(storage)
                for trial in optuna.load_study(
                    study_name=study.study_name, storage=storage
                ).get_trials()
                if trial.state != optuna.trial.TrialState.WAITING
            }  # fmt: skip

    def ended(self) -> State:
        """The trials that have come to an end."""
        return {name: found for name, found in self.state().items() if found[0] != "RUNNING"}

    def logs(self) -> dict[str, int]:
        """Trial → how often it was begun or went on."""
        return {
            path.stem: path.read_text().count(", setup ")
            for path in (self.path / "logs").glob("*.log")
        }


@dataclass(frozen=True)
class Fault:
    """A disturbance: `disturb` starts the run, does it, and returns when the process has ended.

    Attributes:
        name: For the table.
        disturb: What happens.
        mend: What is put right before the run is continued.
    """

    name: str
    disturb: Callable[[Run], None]
    mend: Callable[[Run], None] = lambda run: None


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        fault: Its name.
        seed: Of the moment.
        ended: Trials that had ended before it was continued.
        lost: Of these, how many are not there afterwards as they were.
        repeated: Of these, how many were trained again.
        seconds: From the start of the continuation, or from the fault where the run went on by
            itself, to the next result.
        equal: Whether the journal ends as the undisturbed one; None where the fault changes it.
        note: What the disturbed process said.
    """

    fault: str
    seed: int
    ended: int
    lost: int
    repeated: int
    seconds: float
    equal: bool | None
    note: str

    @property
    def good(self) -> bool:
        """Nothing lost, nothing repeated, nothing changed."""
        return not self.lost and not self.repeated and self.equal is not False


def examine(fault: Fault, seed: int, bench: Bench, stack: ExitStack) -> Outcome:
    """Disturbs a run, continues it, and counts what was lost."""
    name = f"{'-'.join(re.findall(r'[a-z0-9]+', fault.name.lower()))}-{seed}"
    run = Run(bench, name, random.Random(f"{name} {seed}"), stack=stack)
    fault.disturb(run)
    note = run.note
    fault.mend(run)
    before, logs, entries = run.ended(), run.logs(), run.entries()
    damaged = {e.split("@")[0] for e in _damaged(run)}
    started = time.monotonic()
    process = run.resume()
    while process.poll() is None and run.entries() <= entries:
        time.sleep(0.02)
    seconds = time.monotonic() - started
    code = run.end(process)
    assert code == 0, f"the continuation ended with {code}: {run.note}"
    after, bank = run.ended(), PosteriorBank.open(run.path / "bank")
    whole = {entry.name for entry in bank.read() if entry.percent == 100}
    lost = {name for name, found in before.items() if after.get(name) != found}
    lost |= {name for name, found in after.items() if found[0] == "COMPLETE" and name not in whole}
    again = run.logs()
    # An entry that was damaged can only be had again by training.
    repeated = {n for n in before if again.get(n, 0) > logs.get(n, 0) and n not in damaged}
    equal = None if run.changes else after == bench.expected
    seconds = run.recovered or seconds
    return Outcome(fault.name, seed, len(before), len(lost), len(repeated), seconds, equal, note)


def _damaged(run: Run) -> list[str]:
    with suppress(Exception):
        bank = PosteriorBank.open(run.path / "bank")
        bank.read()
        return bank.damaged
    return []


# The faults.


def driver_killed(run: Run) -> None:
    process = run.start()
    run.wait_somewhere(process)
    process.kill()
    process.communicate()


def everything_killed(run: Run) -> None:
    process = run.start()
    run.wait_somewhere(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def kill_one(run: Run, *titles: str) -> None:
    """Kills a process of the run by its title; the run goes on, or ends."""
    process = run.start()
    run.wait_somewhere(process)
    victims = _processes(process.pid, *titles)
    while not victims:
        assert process.poll() is None, "it was over before"
        victims = _processes(process.pid, *titles)
    victims[0].kill()
    started, entries = time.monotonic(), run.entries()
    while process.poll() is None and run.entries() <= entries:
        time.sleep(0.02)
    if process.poll() is None:
        run.recovered = time.monotonic() - started
    run.end(process)


def _processes(driver: int, *titles: str) -> list[psutil.Process]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(title in " ".join(child.cmdline()) for title in titles):
                    found.append(child)
    return found


def signalled(run: Run, *signals: signal.Signals) -> None:
    process = run.start()
    run.wait_somewhere(process)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    run.end(process)


def out_of_time(run: Run) -> None:
    run.more = ["--time-budget", f"{run.draw.randint(3, 6)}s"]
    run.end(run.start())


def injected(run: Run, kind: str, **more: object) -> None:
    """A fault inside of a trial's process."""
    file = Path(f"{run.path}.happened")
    fault = {"kind": kind, "step": run.draw.randint(3, 40), "file": str(file), **more}
    run.env = injection(fault)
    run.changes = kind != "crash"
    run.end(run.start())
    assert file.exists(), "the fault did not happen"
    run.env = {}


def full_disk(run: Run) -> None:
    disk = run.stack.enter_context(small_disk(run.bench.folder / f"disk-{run.name}", 64))
    run.runs_dir = str(disk)
    process = run.start()
    run.wait_somewhere(process)
    with suppress(OSError), (disk / "ballast").open("wb") as file:
        while True:
            file.write(b"\0" * 2**16)
            file.flush()
    assert run.end(process) == 2, run.note
    assert "No space left" in run.note, run.note


def make_room(run: Run) -> None:
    (Path(run.runs_dir) / "ballast").unlink()


def storage_gone(run: Run) -> None:
    """As a network file system that is no longer there."""
    run.runs_dir = str(run.bench.folder / f"mounted-{run.name}")
    process = run.start()
    run.wait_somewhere(process)
    there = Path(run.runs_dir)
    there.rename(there.with_suffix(".away"))
    there.touch()
    assert run.end(process) == 2, run.note
    assert "Not a directory" in run.note, run.note


def back_again(run: Run) -> None:
    there = Path(run.runs_dir)
    there.unlink()
    there.with_suffix(".away").rename(there)


def corrupt_shard(run: Run) -> None:
    """A shard is damaged between two days, and so is refused; then it is put right."""
    run.data = run.bench.folder / f"shards-{run.name}"
    shutil.copytree(run.bench.shards, run.data)
    driver_killed(run)
    shard = sorted(run.data.glob("*.tar"))[run.draw.randrange(4)]
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 4096]))
    empty = run.bench.folder / f"cache-{run.name}"
    assert run.end(run.resume(EMOTION_CACHE=str(empty))) == 2, run.note
    assert shard.name in run.note, run.note
    shard.write_bytes(whole)


def vanished_shard(run: Run) -> None:
    """As above, but it is gone."""
    run.data = run.bench.folder / f"shards-{run.name}"
    shutil.copytree(run.bench.shards, run.data)
    driver_killed(run)
    shard = sorted(run.data.glob("*.tar"))[run.draw.randrange(4)]
    away = shard.rename(run.bench.folder / f"{run.name}.tar")
    empty = run.bench.folder / f"cache-{run.name}"
    assert run.end(run.resume(EMOTION_CACHE=str(empty))) == 2, run.note
    assert shard.name in run.note, run.note
    away.rename(shard)


def half_written(run: Run, pattern: str) -> None:
    """The host loses power, and a file has half of its content."""
    everything_killed(run)
    files = sorted(run.path.glob(pattern)) or [run.path / "journal.log"]
    victim = run.draw.choice(files)
    content = victim.read_bytes()
    if victim.name == "journal.log":
        victim.write_bytes(content + content.splitlines()[-1][:20])
    else:
        victim.write_bytes(content[: len(content) // 2])


def troubled(run: Run, disturb: Callable[[Run, Trouble, Any], None]) -> None:
    """A run that is kept in an object store, the way to which is troubled."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    run.stack.callback(server.stop)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    region = {"AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="test",
        aws_secret_access_key="test", region_name="us-east-1",
    )  # fmt: skip
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="kept")
    trouble = Trouble(f"http://{host}:{port}")
    run.stack.callback(trouble.shutdown)
    run.env = {"AWS_ENDPOINT_URL": trouble.url, **keys, **region}
    run.runs_dir = "s3://kept/runs"
    process = run.start()
    run.wait_somewhere(process)
    disturb(run, trouble, process)
    trouble.delay, trouble.fail_every, trouble.cut, trouble.deny = 0.0, 0, False, False


def slow(run: Run, trouble: Trouble, process: subprocess.Popen[str]) -> None:
    trouble.delay = 0.7
    run.wait(process, run.entries() + 1)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    shutil.rmtree(run.path)  # the machine is gone
    time.sleep(61)  # its lease runs out


def failing(run: Run, trouble: Trouble, process: subprocess.Popen[str]) -> None:
    trouble.fail_every = 4
    run.end(process)


def cut(run: Run, trouble: Trouble, process: subprocess.Popen[str]) -> None:
    trouble.cut = True
    time.sleep(15)
    trouble.cut = False
    run.end(process)


def denied(run: Run, trouble: Trouble, process: subprocess.Popen[str]) -> None:
    trouble.deny = True
    assert run.end(process) == 2, run.note


TRIAL = ("ray::audio-", "ray::video-", "ray::early-")
ACTOR = ("ray::run_trial", "ray::ImplicitFunc")
"""Titles of processes."""

FAULTS = [
    *[(Fault("driver killed", driver_killed), seed) for seed in range(6)],
    *[(Fault("all processes killed", everything_killed), seed) for seed in range(3)],
    *[(Fault("head: GCS killed", lambda run: kill_one(run, "gcs_server")), s) for s in range(2)],
    *[(Fault("head: raylet killed", lambda run: kill_one(run, "/raylet/raylet")), s) for s in range(2)],
    *[(Fault("trial killed", lambda run: kill_one(run, *TRIAL)), seed) for seed in range(4)],
    *[(Fault("trial actor killed", lambda run: kill_one(run, *ACTOR)), seed) for seed in range(2)],
    (Fault("trial crashes", lambda run: injected(run, "crash")), 0),
    (Fault("NaN loss", lambda run: injected(run, "nan")), 0),
    (Fault("NaN loss", lambda run: injected(run, "nan")), 1),
    (Fault("out of memory", lambda run: injected(run, "memory", clips=8)), 0),
    (Fault("out of memory", lambda run: injected(run, "memory", clips=3)), 1),
    (Fault("Ctrl-C once", lambda run: signalled(run, signal.SIGINT)), 0),
    (Fault("Ctrl-C once", lambda run: signalled(run, signal.SIGINT)), 1),
    (Fault("Ctrl-C twice", lambda run: signalled(run, signal.SIGINT, signal.SIGINT)), 0),
    (Fault("SIGTERM", lambda run: signalled(run, signal.SIGTERM)), 0),
    (Fault("time is over", out_of_time), 0),
    (Fault("full disk", full_disk, make_room), 0),
    (Fault("full disk", full_disk, make_room), 1),
    (Fault("storage gone", storage_gone, back_again), 0),
    (Fault("storage gone", storage_gone, back_again), 1),
    (Fault("corrupt shard", corrupt_shard), 0),
    (Fault("shard that is gone", vanished_shard), 0),
    (Fault("half a bank entry", lambda run: half_written(run, "bank/*.npz")), 0),
    (Fault("half a checkpoint", lambda run: half_written(run, "checkpoints/*.pt")), 0),
    (Fault("half a journal line", lambda run: half_written(run, "journal.log")), 0),
    (Fault("store slow, host gone", lambda run: troubled(run, slow)), 0),
    (Fault("store fails 1 in 4", lambda run: troubled(run, failing)), 0),
    (Fault("network to store cut", lambda run: troubled(run, cut)), 0),
    (Fault("store denies writing", lambda run: troubled(run, denied)), 0),
]  # fmt: skip


def outcomes(only: str, bench: Bench) -> Iterator[Outcome | str]:
    """Runs the campaign; a fault that could not be examined is told as text."""
    for fault, seed in FAULTS:
        if only not in fault.name:
            continue
        with ExitStack() as stack:
            try:
                yield examine(fault, seed, bench, stack)
            except Exception as error:
                traceback.print_exc()
                yield f"{fault.name} ({seed}): {' '.join(str(error).split())[:300]}"


def table(found: list[Outcome]) -> str:
    """As Markdown."""
    lines = [
        "| fault | seed | ended before | lost | repeated | next result after, s | journal as undisturbed |",
        "|---|---|---|---|---|---|---|",
    ]
    equal = {True: "yes", False: "NO", None: "(the fault changes it)"}
    for one in found:
        lines.append(
            f"| {one.fault} | {one.seed} | {one.ended} | {one.lost} | {one.repeated} | "
            f"{one.seconds:.1f} | {equal[one.equal]} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit code 0: nothing was lost or repeated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--out", type=Path, help="where to write the table, as Markdown")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder))
        whole = Run(bench, "whole", random.Random(0))
        assert whole.end(whole.start()) == 0, whole.note
        bench.expected = whole.ended()
        found: list[Outcome] = []
        broken = []
        for outcome in outcomes(given.only, bench):
            if isinstance(outcome, str):
                broken.append(outcome)
                print(f"BROKEN  {outcome}", flush=True)
                continue
            found.append(outcome)
            print(f"{'ok    ' if outcome.good else 'BAD   '}  {outcome}", flush=True)
    text = table(found)
    print(text)
    bad = [one for one in found if not one.good]
    print(f"{len(found)} faults, {len(bad)} with something lost or repeated, {len(broken)} broken")
    if given.out and not given.only:
        _write(given.out, text, len(found))
    return 1 if bad or broken else 0


def _write(path: Path, text: str, count: int) -> None:
    start = "<!-- table -->"
    page = path.read_text(encoding="utf-8").split(start)[0]
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()  # fmt: skip
    note = f"{count} faults, {date.today():%Y-%m-%d}, commit `{commit}`, {os.cpu_count()} cores."
    path.write_text(f"{page}{start}\n\n{note}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
