"""Where the time of a finished search went: `python -m benchmarks.search_profile runs/NAME`.

Worker-seconds by architecture from the trials' own logs: the search, fresh seeds and speaker
enrolment apart; and what the wall clock holds beside them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

_RUNG = re.compile(r"^ *(\d+) %, epoch .* ([\d.]+) s\b")


def stage_of(trial: str) -> str:
    """`search`, `fresh seeds` or `enrolment`."""
    if "+seed" in trial:
        return "fresh seeds"
    return "enrolment" if "+enrol" in trial else "search"


def read_log(path: Path) -> tuple[str, int, float]:
    """Architecture, percentage reached and seconds of a trial."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rungs = [match for line in lines if (match := _RUNG.match(line))]
    reached, seconds = (int(rungs[-1][1]), float(rungs[-1][2])) if rungs else (0, 0.0)
    return lines[0].partition(",")[0] if lines else "?", reached, seconds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    table: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for path in sorted((run / "logs").glob("*.log")):
        architecture, reached, seconds = read_log(path)
        row = table[stage_of(path.stem), architecture]
        row[0] += 1
        row[1] += reached < 100
        row[2] += seconds
    total = sum(row[2] for row in table.values())
    print(
        f"{'stage':12} {'architecture':32} {'trials':>6} {'stopped':>7} {'seconds':>8} {'share':>6}"
    )
    for (stage, architecture), (trials, stopped, seconds) in sorted(
        table.items(), key=lambda item: (item[0][0], -item[1][2])
    ):
        print(
            f"{stage:12} {architecture:32} {trials:6.0f} {stopped:7.0f} {seconds:8.0f} "
            f"{100 * seconds / total:5.1f} %"
        )
    print(f"{total:.0f} worker-seconds in trials")
    summary = run / "summary.json"
    if summary.exists():
        took = json.loads(summary.read_text())["seconds"]
        print(f"wall clock: search {took['search']:.0f} s, in all {took['total']:.0f} s")


if __name__ == "__main__":
    main()
