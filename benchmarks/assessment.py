"""How fast a bank of experts is assessed, beside another checkout of this project, such as an older commit.

`python -m benchmarks.assessment --other CHECKOUT [--experts 30] [--clips 200] [--classes 8] [--repeats 3]`

Both assess the same made-up experts, in turn, each in a separate interpreter with one thread. Printed
are the least CPU seconds of `ensembles.evaluation.assessment.assess`, their ratio, how many recipes have the same
experts in both, and the largest difference of an honest score.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine
from benchmarks.fusion import make

# Run in each checkout; it reads experts and prints what came out.
_ASSESS = """
import json, sys, time
import numpy as np
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank.posterior_bank import Experts
from ensembles.evaluation.assessment import assess
found = np.load(sys.argv[1])
table = ClipTable(
    clips=tuple(found["clips"].tolist()), speakers=tuple(found["speakers"].tolist()),
    folds=found["folds"], labels=found["labels"], classes=tuple(found["classes"].tolist()),
)
experts = Experts(
    table, tuple(found["names"].tolist()), tuple(found["modalities"].tolist()), found["values"]
)
started = time.process_time()
rows = assess(experts, sys.argv[2]).recipes
print(json.dumps({
    "seconds": time.process_time() - started,
    "rows": {row.name: [row.honest_score, row.experts] for row in rows},
}))
"""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True, help="another checkout's root")
    parser.add_argument("--experts", type=int, default=30)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    experts = make(given.experts, given.clips, given.classes)
    table = experts.table
    print(
        f"{machine()}; {given.experts} experts × {given.clips} clips × {given.classes} classes, "
        f"one thread, best of {given.repeats}"
    )
    print(
        f"{'metric':10}{'other s':>9}{'this s':>9}{'ratio':>7}{'same experts':>14}{'honest ±':>10}"
    )
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "experts.npz"
        np.savez(
            bank,
            clips=table.clips,
            speakers=table.speakers,
            folds=table.folds,
            labels=table.labels,
            classes=table.classes,
            names=experts.names,
            modalities=experts.modalities,
            values=experts.log_posteriors,
        )
        for metric in ("accuracy", "uar", "log_loss"):
            _compare(metric, bank, given.other, given.repeats)


def _compare(metric: str, bank: Path, other: Path, repeats: int) -> None:
    here = Path(__file__).parents[1]
    pairs = [(_run(other, bank, metric), _run(here, bank, metric)) for _ in range(repeats)]
    before, after = (min(run["seconds"] for run in runs) for runs in zip(*pairs, strict=True))
    old, new = (run["rows"] for run in pairs[0])
    same = sum(old[name][1] == new[name][1] for name in new)
    apart = max(abs(old[name][0] - new[name][0]) for name in new)
    print(
        f"{metric:10}{before:9.2f}{after:9.2f}{before / after:7.1f}"
        f"{f'{same} of {len(new)}':>14}{apart:10.4f}"
    )


def _run(checkout: Path, bank: Path, metric: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _ASSESS, str(bank), metric],
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
