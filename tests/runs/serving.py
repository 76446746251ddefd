"""`python -m ensembles.serve` as people start it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
import urllib.parse
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from tests.runs.process import PATIENCE_S, Command


class Server:
    """A server on a free port of this machine; ended with the block.

    Args:
        exported: The ensemble's folder.
        options: Of the command.
    """

    def __init__(self, exported: Path, *options: object) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary = Path(
            tempfile.mkdtemp(prefix="serving-", dir="/tmp")
        )  # sockets need a short path
        self.printed = Path(tempfile.mkdtemp(prefix="printed-", dir="/tmp"))
        arguments = ["-m", "ensembles.serve", str(exported), "--port", str(self.port)]
        self.command = Command(
            [*arguments, *map(str, options)], self.printed, {"TMPDIR": str(self.temporary)}
        )

    def ready(self) -> Self:
        """Waits until it answers."""
        try:
            self.command.until(lambda: self.url in self.command.out)
        except BaseException:
            self.close()
            raise
        return self

    def __enter__(self) -> Self:
        return self.ready()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.command.clean_up()
        shutil.rmtree(self.temporary, ignore_errors=True)
        shutil.rmtree(self.printed, ignore_errors=True)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused while it is being sent
                connection.request("POST" if body else "GET", path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def predict(self, path: Path) -> tuple[int, Any]:
        """Status and JSON of the answer to a file."""
        return self.ask(f"/predict?name={urllib.parse.quote(path.name)}", path.read_bytes())

    def processes(self) -> list[psutil.Process]:
        """All that it started."""
        return psutil.Process(self.command.process.pid).children(recursive=True)

    def interrupt(self) -> int:
        """Ctrl-C, as a terminal sends it to all of the group; returns the exit code."""
        os.killpg(self.command.process.pid, signal.SIGINT)
        return self.command.wait()
