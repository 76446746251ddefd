"""Peak memory of a whole search: every process of the tree, shared pages counted once (PSS).

`python -m benchmarks.memory -- --data SHARDS --trials 12 …` (arguments of search.run)
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    """Samples twice a second until the search ends."""
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    search = subprocess.Popen([sys.executable, "-m", "search.run", *arguments])
    root = psutil.Process(search.pid)
    peak, started = 0, time.monotonic()
    while search.poll() is None:
        peak = max(peak, _tree_bytes(root))
        time.sleep(0.5)
    print(
        f"peak memory of the process tree: {peak / 2**30:.2f} GiB in {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
