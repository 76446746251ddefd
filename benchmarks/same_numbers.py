"""Records what fixed searches compute, so that a change of structure can be shown to change no number.

    python -m benchmarks.same_numbers record OUT [--tree OTHER_CHECKOUT]
    python -m benchmarks.same_numbers compare OUT_1 OUT_2

`record` runs three searches, each with one worker, one seed, in float32 on the CPU and without a
time limit: the synthetic corpus, the continuous synthetic corpus, and RAVDESS (where
`EMOTION_CORPORA` has it); exports the first and the second, and predicts with the exports. `compare` reads
journals, banks, scores, tables of predictions and the exports' answers, without dates, seconds and
identifiers, bit by bit. Only files and commands are used, so that any two commits can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ALWAYS = (
    *("--workers", "1", "--time-budget", "24h", "--precision", "float32", "--device", "cpu"),
    *("--address", "local", "--dashboard", "false", "--page", "false", "--seed", "1"),
)
CHEAP = "functionals,action_units,action_unit_lstm,concatenation,gated"
TIMED = (
    "seconds",
    "searched",
    "datetime",
    "date",
    "worker_id",
    "clips_per_second",
    "latency",
    "bytes",
    "commit",
)
"""Keys of records that differ from one run to the next, or that hold one of these words."""
PLACES = ("command", "runs_dir", "cache_dir", "data", "machine", "versions", "format_version")
"""Keys of records that say where, when and by which version a run was made."""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_numbers", description=__doc__)
    doing = parser.add_subparsers(dest="doing", required=True)
    recording = doing.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--tree", type=Path, default=Path.cwd(), help="another checkout")
    comparing = doing.add_parser("compare")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    args = parser.parse_args()
    if args.doing == "record":
        record(args.tree.resolve(), args.out.resolve())
        return
    differences = list(compare(args.first, args.second))
    print("\n".join(differences) or "the same numbers")
    sys.exit(1 if differences else 0)


def record(tree: Path, out: Path) -> None:
    """Runs the searches of a checkout; what is in `out` already is not run again."""
    out.mkdir(parents=True, exist_ok=True)

    def run(module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=tree, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{module} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def search(name: str, *arguments: str) -> None:
        if not (out / name / "summary.json").exists():
            run("search.run", "--runs-dir", str(out), "--name", name, *ALWAYS, *arguments)

    shards = out / "continuous"
    run(
        *(
            "datasets.prepare",
            "synthetic_traces",
            "--root",
            str(out / "media"),
            "--out",
            str(shards),
        ),
        *("--speakers", "8", "--minutes", "0.5", "--workers", "2"),
    )
    search(
        "synthetic", "--only", CHEAP, "--trials", "30", "--confirm-seeds", "1", "--enrolment", "5"
    )
    search("traces", "--data", str(shards), "--trials", "6", "--only", "functionals,residual_lstm")
    if corpora := os.environ.get("EMOTION_CORPORA"):
        root, data = Path(corpora, "ravdess"), str(out / "ravdess_shards")
        features = str(root / "action_units.csv")
        run(
            "datasets.prepare",
            "ravdess",
            "--root",
            str(root),
            "--features",
            features,
            "--out",
            data,
        )
        search("ravdess", "--data", data, "--trials", "30", "--only", CHEAP)
    media = sorted(
        str(path) for path in (out / "media").rglob("*") if path.suffix in (".wav", ".mkv")
    )
    for name in ("synthetic", "traces"):
        folder = out / f"{name}_export"
        if not folder.exists():
            run("ensembles.export", str(out / name), "--out", str(folder))
        answers = run("ensembles.predict", str(folder), "--json", *media[:2])
        (out / f"{name}_answers.json").write_text(answers)


def compare(first: Path, second: Path) -> Iterator[str]:
    """Yield a line for every difference between two recordings."""
    names = sorted(path.parent.name for path in first.glob("*/summary.json"))
    if names != sorted(path.parent.name for path in second.glob("*/summary.json")):
        yield "the recordings hold other searches"
        return
    for name in names:
        one, other = first / name, second / name
        yield from _differ(f"{name}/journal.log", _journal(one), _journal(other))
        yield from _differ(f"{name}/summary.json", _record(one), _record(other))
        yield from _banks(name, one, other)
        for table in sorted(one.glob("predictions*.csv")):
            if table.read_bytes() != (other / table.name).read_bytes():
                yield f"{name}/{table.name} differs"
    for answers in sorted(first.glob("*_answers.json")):
        if _placeless(answers) != _placeless(second / answers.name):
            yield f"{answers.name} differs"


def _placeless(answers: Path) -> str:
    return answers.read_text().replace(str(answers.parent.resolve()), "")


def _journal(run: Path) -> list[Any]:
    lines = (json.loads(line) for line in (run / "journal.log").read_text().splitlines())
    return [_timeless(line) for line in lines if "seconds" not in (line.get("user_attr") or {})]


def _record(run: Path) -> Any:
    return _timeless(json.loads((run / "summary.json").read_text()))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(inner)
            for key, inner in value.items()
            if key not in PLACES and not any(word in key for word in TIMED)
        }
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _banks(name: str, one: Path, other: Path) -> Iterator[str]:
    files = sorted(path.name for path in (one / "bank").glob("*.npz"))
    if files != sorted(path.name for path in (other / "bank").glob("*.npz")):
        yield f"{name}: the banks hold other entries"
        return
    for file in files:
        with np.load(one / "bank" / file) as left, np.load(other / "bank" / file) as right:
            for key in left.files:
                if key != "meta" and not np.array_equal(left[key], right[key], equal_nan=True):
                    yield f"{name}/bank/{file}: {key} differs"


def _differ(place: str, one: Any, other: Any) -> Iterator[str]:
    """Yield where two records differ; keys that one of them alone has are not compared."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() & other.keys():
            yield from _differ(f"{place}: {key}", one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{place}: {len(one)} and {len(other)} entries"
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _differ(f"{place}[{number}]", left, right)
    elif one != other and not (one != one and other != other):
        yield f"{place}: {one!r} and {other!r}"


if __name__ == "__main__":
    main()
