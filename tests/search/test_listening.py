"""What a search's own Ray lets in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]

_LISTENERS = """
import json, time
import psutil, ray
from search.cluster import start_ray, stop_ray
start_ray(None, 1, dashboard=True)
ray.get(ray.remote(lambda: 1).remote())
time.sleep(2)  # its agents open theirs a moment later
session = ray._private.worker.global_worker.node.get_session_dir_path()
mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
mine += [p for p in psutil.process_iter(["cmdline"]) if any(session in c for c in p.info["cmdline"] or [])]
found = set()
for process in mine:
    try:
        found |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"}
    except psutil.Error:
        pass
stop_ray()
print(json.dumps(sorted(found)))
"""


@pytest.mark.slow
def test_nothing_of_a_search_on_this_machine_listens_beyond_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LISTENERS],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found
    assert all(ip.removeprefix("::ffff:") == "127.0.0.1" for ip in found), found
