"""Shards behind URLs: an object store, and a web server that fails and cuts connections."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from datasets.clips import DataError
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.stream import stream_clips
from datasets.storage import retrying
from datasets.storage.retrying import open_resuming
from datasets.storage.synced_folder import KeptFolder, OutsideError


class WebServer(ThreadingHTTPServer):
    """Serves a folder, perhaps badly.

    Attributes:
        requests: Answered so far.
        sent: Bytes of content so far.
        fails: Whether the request of that number is answered with 503.
        cuts: Whether the answer to it ends in the middle.
        ranges: Whether parts of files can be asked for.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests, self.sent = folder, 0, 0
        self.fails: Callable[[int], bool] = lambda number: False
        self.cuts: Callable[[int], bool] = lambda number: False
        self.ranges = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is none of our business."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        self.server.requests += 1
        number = self.server.requests
        path = self.server.folder / self.path.lstrip("/")
        if self.server.fails(number):
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range") if self.server.ranges else None
        self.send_response(206 if asked else 200)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last or len(content) - 1), len(content) - 1)
            self.send_header("Content-Range", f"bytes {first}-{stop}/{len(content)}")
            content = content[int(first) : stop + 1]
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if self.server.cuts(number):
            content = content[: len(content) // 2]
            self.close_connection = True
        self.server.sent += len(content)
        self.wfile.write(content)


@pytest.fixture()
def web(small_index: ShardIndex, tmp_path: Path) -> Iterator[WebServer]:
    """The small corpus's shards on a web server."""
    shutil.copytree(small_index.root, tmp_path / "site" / "shards")
    server = WebServer(tmp_path / "site")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for, none of which is waited; other threads wait as they like."""
    waits: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(retrying.time, "sleep", noted)
    return waits


def same_clips(index: ShardIndex, local: ShardIndex, folder: Path) -> None:
    """The cache filled from one is that of the other."""
    there, here = open_cache(index, folder / "there"), open_cache(local, folder / "here")
    rows = np.arange(len(local.clips))
    for kind in ("audio", "features"):
        one, other = (cache.batch(rows, [kind])[kind] for cache in (there, here))
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_shards_stream_from_an_object_store(
    small_index: ShardIndex, tmp_path: Path, object_store: Any
) -> None:
    object_store.create_bucket(Bucket="corpora")
    for path in Path(small_index.root).iterdir():
        object_store.upload_file(str(path), "corpora", f"small/{path.name}")
    index = read_index("s3://corpora/small")
    assert index.checksum == small_index.checksum
    same_clips(index, small_index, tmp_path)
    object_store.delete_object(Bucket="corpora", Key=f"small/{small_index.shards[-1].name}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DataError, match=small_index.shards[-1].name):
        list(stream_clips(index))


def test_a_server_that_fails_and_cuts_loses_no_clip(
    web: WebServer, small_index: ShardIndex, tmp_path: Path, short_waits: list[float]
) -> None:
    web.fails = lambda number: number % 10 == 3
    web.cuts = lambda number: number % 10 == 7
    index = read_index(f"{web.url}/shards")
    for _ in range(3):
        found = sorted(str(sample["clip"]) for sample in stream_clips(index))
        assert found == sorted(entry.clip for entry in small_index.clips)
    same_clips(index, small_index, tmp_path)
    assert web.requests > 20
    assert len(short_waits) >= web.requests // 10, "it did fail"


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_read_is_not_read_again_where_the_server_can_go_on(
    web: WebServer, tmp_path: Path, ranges: bool
) -> None:
    content = np.random.default_rng(0).bytes(17 * 2**20)
    (tmp_path / "site" / "large").write_bytes(content)
    web.ranges = ranges
    with open_resuming(f"{web.url}/large") as file:
        assert file.read() == content
    undisturbed, before = web.sent, web.requests
    # Late in the file; the second time while it is going on.
    cut = {before + 5, before + 6} if ranges else {before + 3, before + 5}
    web.cuts = lambda number: number in cut
    with open_resuming(f"{web.url}/large") as file:
        assert file.read() == content
    assert web.requests > max(2 * before, *cut), "it was cut off, and requested again"
    if (
        ranges
    ):  # no more than two blocks of 5 MiB, cut off half-way, and nothing that came before them
        assert 2**20 < web.sent - 2 * undisturbed < 2 * 5 * 2**20


def test_a_server_that_stays_away_is_named_in_the_end(
    web: WebServer, small_index: ShardIndex, short_waits: list[float]
) -> None:
    index = read_index(f"{web.url}/shards")
    web.fails = lambda number: True
    url = f"{web.url}/shards/{small_index.shards[0].name}"
    with pytest.raises(DataError, match=rf"shard '{url}'.*given up after 8 attempts"):
        list(stream_clips(index))
    assert len(short_waits) == retrying.ATTEMPTS - 1
    assert 20 < sum(short_waits) < 100, "about a minute"


def test_a_file_that_is_not_there_is_not_asked_for_again(
    web: WebServer, short_waits: list[float]
) -> None:
    with pytest.raises(DataError, match=r"No index\.json in 'http://.*/nowhere'"):
        read_index(f"{web.url}/nowhere")
    assert short_waits == []


def test_a_page_that_links_out_of_its_folder_is_refused(web: WebServer, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "evil").write_bytes(b"x")
    (site / "weights").write_text('<a href="fine">fine</a> <a href="../../evil">evil</a>')
    with pytest.raises(OutsideError, match=r"/weights' lists '\.\./\.\./evil', which lies outside"):
        KeptFolder.at(f"{web.url}/weights", tmp_path / "cache").pull([""])
    (site / "weights").write_text('<a href="fine">fine</a>')
    with pytest.raises(OSError, match="lists no sizes"):
        KeptFolder.at(f"{web.url}/weights", tmp_path / "cache").pull([""])
    assert not list((tmp_path / "cache").rglob("*"))
