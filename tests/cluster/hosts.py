"""Several hosts on one machine: network namespaces with their own address and their own sshd.

They share the file system and the home folder, as hosts with shared storage do; only the
network differs. Needs root, and Debian's iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SUBNET = "10.99.7"
_RAY = Path("/usr/local/bin/ray")
"""Where a login shell finds it; `ray down` calls it by its name."""


def why_not() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "sshd", "rsync", "ssh-keygen") if not shutil.which(name)]
    if missing:
        return f"no {missing[0]} here (Debian: iproute2 openssh-server rsync)"
    if _RAY.exists() and not _RAY.is_symlink():
        return f"{_RAY} is in the way"
    name = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


class Hosts:
    """Hosts on a bridge of their own.

    Attributes:
        folder: Keys, pid files and the hosts' temporary files.
        outside: The bridge's address, by which the hosts reach this process.
        addresses: One a host.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.outside = f"{SUBNET}.1"
        self.addresses = [f"{SUBNET}.{number}" for number in range(2, count + 2)]
        self._bridge = f"es{os.getpid() % 100_000}"

    @property
    def key(self) -> Path:
        """Opens every host by ssh."""
        return self.folder / "key"

    def _name(self, host: int) -> str:
        return f"{self._bridge}-{host}"

    def __enter__(self) -> Hosts:
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        _do("ssh-keygen", "-A")
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        try:
            _do("ip", "link", "add", self._bridge, "type", "bridge")
            _do("ip", "address", "add", f"{self.outside}/24", "dev", self._bridge)
            _do("ip", "link", "set", self._bridge, "up")
            self._install_ray()
            for host in range(self.count):
                self._make(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self, host: int) -> None:
        name, cable = self._name(host), f"{self._bridge}v{host}"
        _do("ip", "netns", "add", name)
        _do("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _do("ip", "link", "set", cable, "master", self._bridge, "up")
        inside = ("ip", "netns", "exec", name)
        _do(*inside, "ip", "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
        _do(*inside, "ip", "link", "set", "eth0", "up")
        _do(*inside, "ip", "link", "set", "lo", "up")
        _do(*inside, "ip", "route", "add", "default", "via", self.outside)
        options = {
            "AuthorizedKeysFile": f"{self.key}.pub",
            "StrictModes": "no",
            "PermitRootLogin": "yes",
            "PidFile": self.folder / f"sshd-{host}.pid",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        _do(*inside, shutil.which("sshd") or "sshd", *flags)

    def _install_ray(self) -> None:
        """On the hosts' path, a `ray` whose `stop` spares the other hosts' processes."""
        script = self.folder / "bin" / "ray"
        script.parent.mkdir(exist_ok=True)
        real = Path(sys.executable).parent / "ray"
        script.write_text(
            "#!/bin/sh\n"
            f'[ "$1" = stop ] || exec {real} "$@"\n'
            "for pid in $(ip netns pids $(ip netns identify $$)); do\n"
            "  tr '\\0' ' ' < /proc/$pid/cmdline | grep -qE 'ray::|/ray/|ray\\.util' && kill -9 $pid\n"
            "done\n"
            "true\n"
        )
        script.chmod(0o755)
        _RAY.unlink(missing_ok=True)  # left by a test that was killed
        _RAY.symlink_to(script)

    def command(self, host: int, *arguments: object) -> list[str]:
        """The command line that runs a program on a host."""
        return ["ip", "netns", "exec", self._name(host), *map(str, arguments)]

    def processes(self, host: int) -> list[int]:
        """What runs on a host, but for its sshd."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._name(host)], capture_output=True, text=True, check=False
        ).stdout.split()
        return [int(pid) for pid in listed if "sshd" not in _title(int(pid))]

    def lose(self, host: int) -> None:
        """Kills everything on a host but its sshd: the host went down, and came back empty."""
        for pid in self.processes(host):
            _kill(pid)
        wait_until(lambda: not self.processes(host), 20, "the host's processes are gone")

    def cut(self, host: int, *, off: bool) -> None:
        """Takes a host's network cable out, or puts it in again."""
        _do("ip", "link", "set", f"{self._bridge}v{host}", "down" if off else "up")

    def __exit__(self, *_: object) -> None:
        for host in range(self.count):
            listed = subprocess.run(
                ["ip", "netns", "pids", self._name(host)],
                capture_output=True,
                text=True,
                check=False,
            )
            for pid in listed.stdout.split():
                _kill(int(pid))
            subprocess.run(
                ["ip", "netns", "delete", self._name(host)], capture_output=True, check=False
            )
        _RAY.unlink(missing_ok=True)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Waits for it; fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.3)


def _do(*arguments: object) -> None:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, arguments))}: {done.stderr}"


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
