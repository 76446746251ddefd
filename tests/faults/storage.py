"""Storage that fails: folders that are full or read-only, and a troubled way to an object store."""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of so many megabytes; needs root."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Trouble(ThreadingHTTPServer):
    """Passes requests on to an object store, not always well.

    Attributes:
        delay: Seconds before every answer.
        fail_every: Every so-manieth request is answered with 503; 0 for none.
        cut: Connections are closed without an answer.
        deny: What would write is answered with 403.
        requests: Passed on or failed so far.
    """

    def __init__(self, store: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = urlsplit(store)
        self.delay, self.fail_every, self.requests = 0.0, 0, 0
        self.cut = self.deny = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where to ask."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is none of our business."""


class _Handler(BaseHTTPRequestHandler):
    server: Trouble
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        trouble = self.server
        trouble.requests += 1
        time.sleep(trouble.delay)
        if trouble.cut:
            self.close_connection = True
            return
        if trouble.deny and self.command in ("PUT", "POST", "DELETE"):
            text = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self._answer(403, [("Content-Type", "application/xml")], text)
        elif trouble.fail_every and trouble.requests % trouble.fail_every == 0:
            text = b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>"
            self._answer(503, [("Content-Type", "application/xml")], text)
        else:
            self._forward(body)

    def _forward(self, body: bytes) -> None:
        store = self.server.store
        connection = http.client.HTTPConnection(str(store.hostname), store.port, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        skipped = {"transfer-encoding", "connection", "content-length"}
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
        if self.command == "HEAD":
            length = answer.getheader("Content-Length") or "0"
            self._answer(answer.status, [*headers, ("Content-Length", length)], None)
        else:
            self._answer(answer.status, headers, answer.read())
        connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes | None) -> None:
        self.send_response_only(status)
        for key, value in headers:
            self.send_header(key, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *_: Any) -> None:
        pass
