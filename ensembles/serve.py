"""Serves an exported ensemble over HTTP: `python -m ensembles.serve DIR --port 8000`.

A page takes files and shows their probabilities over time; `POST /predict?name=clip.wav` does the
same for programs. It runs on a Ray of its own on this machine, and listens on 127.0.0.1 only
unless `--host` says otherwise. See docs/serving.md.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import psutil

from datasets.media.windows import MOST_FACE_SECONDS
from ensembles import EnsembleError
from ensembles.artifact.manifest import read_artifact
from ensembles.serving.limits import Limits

_RAY_SETTINGS = {
    # Ray's own name for "this machine alone": otherwise its ports are open on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
_OBJECT_STORE_BYTES = 100 * 2**20
_ANSWER_S = 300.0
"""For a request from its first byte to the answer; slow senders do not hold a place forever."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when ended by Ctrl-C or SIGTERM; 2 with one line if it cannot serve."""
    given = _parser().parse_args(arguments)
    try:
        limits = Limits(
            megabytes=given.max_mb,
            seconds=given.max_seconds,
            decode_seconds=given.decode_seconds,
            window_seconds=given.window,
            hop_seconds=given.hop,
        )
        if given.replicas < 1:
            raise EnsembleError(f"--replicas must be 1 or more, got {given.replicas}.")
        artifact = read_artifact(given.folder, verify=given.verify)
        if artifact.answers != "classes":
            raise EnsembleError(
                f"serve supports classifiers only; this ensemble predicts {', '.join(artifact.labels)}. "
                "Use python -m ensembles.predict."
            )
        if artifact.face_finder() and limits.window_seconds > MOST_FACE_SECONDS:
            raise EnsembleError(
                f"Windows whose pictures are cropped to a face last {MOST_FACE_SECONDS:.0f} s at "
                f"most, got --window {limits.window_seconds:g}."
            )
        _check_address(given.host, given.port)
        over = Event()
        _end_by_signals(over)
        with _own_ray(given.replicas) as work:
            _end_by_signals(over)  # Ray has set its own for SIGTERM
            _serve(given, limits, work)
            if not over.is_set():
                _announce(given, artifact.labels)
            over.wait()
    except (EnsembleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m ensembles.serve",
        description="Serves an exported ensemble: a page, and POST /predict.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="made by ensembles.export")
    add = parser.add_argument
    add("--port", type=int, default=8000, help="where it listens")
    add("--host", default="127.0.0.1", help="address; any other than this one lets others in")
    add("--replicas", type=int, default=1, help="processes that predict, a core each")
    add("--max-mb", type=float, default=default.megabytes, help="size of an upload")
    add("--max-seconds", type=float, default=default.seconds, help="length of a clip")
    add("--decode-seconds", type=float, default=default.decode_seconds, help="a file's decoding")
    add("--window", type=float, default=default.window_seconds, help="seconds of one prediction")
    add("--hop", type=float, default=default.hop_seconds, help="seconds to the next")
    add("--verify", metavar="SHA256", help="refuse DIR unless its ensemble.json has this checksum")
    return parser


def _check_address(host: str, port: int) -> None:
    """Raises EnsembleError if nobody can listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise EnsembleError(
            f"Cannot listen on {host}:{port}: {why}. Choose another --port or --host."
        ) from error


def _end_by_signals(over: Event) -> None:
    """Has Ctrl-C and SIGTERM set `over`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())


@contextmanager
def _own_ray(replicas: int) -> Iterator[Path]:
    """A Ray of this server's own, and a folder for its files and uploads; both gone afterwards."""
    os.environ.update(_RAY_SETTINGS)  # read when Ray is imported, and by all its processes
    import ray

    work = Path(tempfile.mkdtemp(prefix="serve-"))
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address="local",  # never another Ray that runs here
            num_cpus=max(replicas, len(os.sched_getaffinity(0))),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(work),
        )
        yield work
    finally:
        ray.shutdown()
        shutil.rmtree(work, ignore_errors=True)


def _serve(given: argparse.Namespace, limits: Limits, work: Path) -> None:
    """Starts the replicas and waits until they answer."""
    from ray import serve

    from ensembles.serving.replica import ServeSettings, deployment

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    settings = ServeSettings(
        folder=given.folder.resolve(),
        work=work,
        limits=limits,
        hosts=["127.0.0.1", "localhost", "[::1]"] if _is_local(given.host) else None,
        replicas=given.replicas,
        verify=given.verify,
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": given.host,
            "port": given.port,
            "request_timeout_s": _ANSWER_S,
        },
    )
    try:
        serve.run(deployment(settings), name="emotions")
    except RuntimeError as error:
        raise EnsembleError(f"The replicas do not start: {error}") from error
    _check_ports(given.port)


def _check_ports(own: int) -> None:
    """Raises EnsembleError if a process of this Ray listens beyond this machine."""
    open_ports = {
        (name, connection.laddr.ip, connection.laddr.port)
        for name, connection in _listening()
        if not _is_local(connection.laddr.ip) and connection.laddr.port != own
    }
    if open_ports:
        name, ip, port = min(open_ports)
        raise EnsembleError(
            f"Ray's process '{name}' listens on {ip}:{port}, beyond this machine, and takes "
            "pickled code. Use the Ray version of constraints.txt."
        )


def _listening() -> Iterator[tuple[str, Any]]:
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    yield process.name(), connection
        except psutil.Error:  # ended meanwhile
            continue


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _announce(given: argparse.Namespace, labels: tuple[str, ...]) -> None:
    if not _is_local(given.host):
        print(
            f"note: listens on {given.host}: whoever reaches this machine can send files to it, "
            "unencrypted and without a password.",
            file=sys.stderr,
        )
    print(f"serving {given.folder} ({', '.join(labels)})")
    host = f"[{given.host}]" if ":" in given.host else given.host
    print(f"http://{host}:{given.port}/  (Ctrl-C ends it)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
