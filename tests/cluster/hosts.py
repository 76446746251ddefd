"""Several hosts on one machine: network namespaces with an address, a home folder and an sshd.

They share the file system, as hosts with shared storage do; network and home folder are each
host's own. Needs root, and Debian's iproute2, openssh-server, rsync and make.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

SUBNET = "10.99.7"
PATIENCE_S = 600.0
"""How long anything may take: a busy machine is no fault of the program."""
_FIRST = 4
"""The first host's number: EC2 keeps those below for itself."""


def why_not() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "sshd", "rsync", "make") if not shutil.which(name)]
    if missing:
        return f"no {missing[0]} here (Debian: iproute2 openssh-server rsync make)"
    name = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


class Hosts:
    """Hosts on a bridge of their own.

    Attributes:
        folder: Keys, pid files, and the hosts' homes and temporary files.
        outside: The bridge's address, by which the hosts reach this process.
        addresses: One a host.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.outside = f"{SUBNET}.1"
        self.addresses = [f"{SUBNET}.{number}" for number in range(_FIRST, count + _FIRST)]
        self._bridge = f"es{os.getpid() % 100_000}"
        # Whoever else makes hosts on this machine waits: all share one subnet.
        self._alone = FileLock(Path(tempfile.gettempdir()) / "emotion-search-hosts.lock")

    @property
    def key(self) -> Path:
        """Opens every host by ssh."""
        return self.folder / "key"

    def _name(self, host: int) -> str:
        return f"{self._bridge}-{host}"

    def __enter__(self) -> Hosts:
        self._alone.acquire()
        self.home(None).mkdir(parents=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        _do("ssh-keygen", "-A")
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        try:
            _do("ip", "link", "add", self._bridge, "type", "bridge")
            _do("ip", "address", "add", f"{self.outside}/24", "dev", self._bridge)
            _do("ip", "link", "set", self._bridge, "up")
            self._write_ray()
            for host in range(self.count):
                self._make(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self, host: int) -> None:
        name, cable = self._name(host), f"{self._bridge}v{host}"
        _do("ip", "netns", "add", name)
        self._furnish(host)
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

    def home(self, host: int | None) -> Path:
        """A host's home folder; without a host, that of the user outside."""
        return self.folder / ("outside" if host is None else f"home-{host}")

    def _furnish(self, host: int) -> None:
        """A home with an environment that is up to date: this one, but for `ray stop`."""
        home = self.home(host)
        environment = home / "emotion-search" / ".venv"
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "ray").symlink_to(self.folder / "ray")
        (environment / "bin" / "python").symlink_to(self.folder / "python")
        (environment / ".ready").touch()  # newer than what the setup command compares it to
        (home / ".profile").write_text(". ~/.bashrc\n")  # as Debian and Ubuntu have it
        self.set(host, RAY_TMPDIR=f"{self.folder}/{host}", RAY_OVERRIDE_RESOURCES='{"CPU": 1}')
        # `ip netns exec` lays what is here over /etc.
        passwd = self._etc(host) / "passwd"
        passwd.parent.mkdir(parents=True, exist_ok=True)
        passwd.write_text(f"root:x:0:0:root:{home}:/bin/bash\n" + _others())

    def _etc(self, host: int) -> Path:
        return Path("/etc/netns") / self._name(host)

    def set(self, host: int, **settings: str) -> None:
        """Settings that every shell of the host has."""
        with (self.home(host) / ".bashrc").open("a") as file:
            file.writelines(f"export {key}={shlex.quote(v)}\n" for key, v in settings.items())

    def _write_ray(self) -> None:
        """A `ray` that keeps to its host's own processes and folder, and a `python`."""
        real = Path(sys.executable).parent
        scripts = {
            "ray": (
                'case "$1 $*" in\n'
                "stop*) ;;\n"
                # A worker takes the head's folder for its files: on this shared disk both would
                # unpack the same code into the same place, each deleting what the other runs.
                f'"start "*--address=*) exec {real}/ray "$@" --temp-dir="$RAY_TMPDIR/ray" ;;\n'
                f'*) exec {real}/ray "$@" ;;\n'
                "esac\n"
                "for pid in $(ip netns pids $(ip netns identify $$)); do\n"
                "  tr '\\0' ' ' < /proc/$pid/cmdline | grep -qE 'ray::|/ray/|ray\\.util'"
                " && kill -9 $pid\n"
                "done\n"
                "true\n"
            ),
            "python": f'exec {sys.executable} "$@"\n',
        }
        for name, script in scripts.items():
            (self.folder / name).write_text(f"#!/bin/sh\n{script}")
            (self.folder / name).chmod(0o755)

    def environment(self, host: int | None = None, **more: str) -> dict[str, str]:
        """The environment of a program on a host; without a host, of the user outside."""
        own = {"HOME": str(self.home(host))}
        if host is None:
            own |= {"TMPDIR": own["HOME"], "RAY_TMPDIR": own["HOME"]}
        return {**os.environ, "RAY_AUTH_MODE": "token", "COLUMNS": "160", **own, **more}

    def ray(self, *arguments: object, **settings: str) -> str:
        """The `ray` command of the user outside, in the repository; returns its output."""
        done = subprocess.run(
            [Path(sys.executable).parent / "ray", *map(str, arguments)],
            cwd=Path(__file__).parents[2],
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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
        wait_until(lambda: not self.processes(host), "the host's processes are gone")

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
            shutil.rmtree(self._etc(host), ignore_errors=True)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)
        self._alone.release()


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits for it; fails with what was waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s still not: {what}"
        time.sleep(0.3)


def _do(*arguments: object) -> None:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, arguments))}: {done.stderr}"


def _others() -> str:
    """The users of this machine, but for root; sshd needs its own."""
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("root:"))


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
