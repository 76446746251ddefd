"""The server as people start it: uploads, refusals, the page in a browser, and its end."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import termios
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from ensembles.artifact.manifest import read_artifact
from ensembles.inference.predictor import Predictor
from ensembles.serve import _is_local
from tests.runs.process import PATIENCE_S
from tests.runs.serving import Server

LIMITS = ("--max-mb", 2, "--max-seconds", 6, "--window", 0.5, "--hop", 0.25)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """Those that were started; only the last one may still run."""
    started: list[Server] = []
    yield started
    for server in started:
        server.close()


@pytest.fixture()
def server(exported: Path, servers: list[Server]) -> Server:
    """The server of an earlier test, or another where there is none or it has ended."""
    if not servers or not servers[-1].command.running:
        servers.append(Server(exported, *LIMITS).ready())
    return servers[-1]


@pytest.fixture()
def clip(small_run: Any) -> Path:
    return Path(next(iter(small_run.media.values())))


def test_it_says_what_the_predictor_says(server: Server, exported: Path, clip: Path) -> None:
    status, answer = server.predict(clip)
    (expected,) = Predictor(read_artifact(exported)).files([clip])
    assert status == 200
    assert answer["label"] == expected.label
    for name, value in expected.probabilities.items():
        assert answer["probabilities"][name] == pytest.approx(value, abs=1e-5)
    assert answer["name"] == clip.name
    assert answer["experts"] == list(expected.experts)
    assert answer["windows"][-1]["end_s"] == pytest.approx(answer["seconds"], abs=0.01)
    assert all(sum(w["probabilities"].values()) == pytest.approx(1.0) for w in answer["windows"])


def test_what_it_cannot_use_is_refused_and_it_goes_on(
    server: Server, clip: Path, tmp_path: Path
) -> None:
    corrupt, long, other = (tmp_path / name for name in ("a.wav", "long.flac", "a.txt"))
    corrupt.write_bytes(b"RIFF" + bytes(range(256)) * 8)
    other.write_text("no sound")
    soundfile.write(long, np.random.default_rng(0).normal(0, 0.1, 7 * 8000), 8000)
    for path, code, text in (
        (corrupt, 422, "cannot be decoded"),
        (other, 415, "no sound or video file by its name"),
        (long, 413, "lasts 7.0 s, 6 s are allowed"),
    ):
        status, answer = server.predict(path)
        assert (status, text in answer["error"]) == (code, True), answer
    assert server.ask("/predict?name=a.wav", bytes(2_000_001))[0] == 413
    assert server.ask("/predict", b"RIFF")[0] == 400
    assert server.ask("/nowhere") == (404, {"error": "Not Found."})
    assert server.ask("/health", Host="evil.example")[0] == 403
    assert server.predict(clip)[0] == 200
    assert list(server.temporary.glob("serve-*/upload-*")) == []


def test_too_much_without_a_length_is_refused_while_it_comes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        head = "POST /predict?name=a.wav HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(40):  # 2.6 MB of what could go on forever; the request never ends
            connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def unread(process: psutil.Process) -> int:
    """How many bytes of its input lie before a process that is suspended."""
    with Path(f"/proc/{process.pid}/fd/0").open("rb", buffering=0) as pipe:
        (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


def test_its_decoder_may_die_under_a_request(server: Server, clip: Path) -> None:
    def decoders() -> list[psutil.Process]:
        return [
            process
            for process in server.processes()
            if "ensembles.serving.decode" in process.cmdline()
        ]

    (decoder,) = decoders()
    decoder.suspend()  # as one that hangs
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.predict, clip)
        deadline = time.monotonic() + PATIENCE_S
        while not unread(decoder):
            assert time.monotonic() < deadline, "no request comes to the decoder"
            time.sleep(0.05)
        decoder.kill()
        status, answer = asked.result(timeout=PATIENCE_S)
    assert (status, "killed by SIGKILL" in answer["error"]) == (422, True), answer
    assert server.predict(clip)[0] == 200
    assert [process.pid for process in decoders()] != [decoder.pid]


def test_people_who_ask_together_share_batches(server: Server, tmp_path: Path) -> None:
    clip = tmp_path / "noise.wav"  # sooner decoded than predicted
    soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 5 * 16000), 16000)
    before = server.ask("/health")[1]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.predict, [clip] * 24))
    after = server.ask("/health")[1]
    assert {status for status, _ in answers} == {200}
    for _, answer in answers:
        assert answer["probabilities"] == pytest.approx(answers[0][1]["probabilities"], abs=1e-4)
    assert after["requests"] - before["requests"] == 24
    assert after["batches"] - before["batches"] < 24


def test_its_description_names_the_request_the_answer_and_the_refusals(server: Server) -> None:
    status, document = server.ask("/openapi.json")
    assert status == 200
    assert set(document["paths"]) == {"/predict", "/health"}
    post = document["paths"]["/predict"]["post"]
    assert post["requestBody"]["content"] == {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
    }
    assert {p["name"] for p in post["parameters"]} == {"name"}
    assert {"200", "413", "415", "422", "504"} <= set(post["responses"])
    schema = document["components"]["schemas"]["Prediction"]
    assert {"label", "probabilities", "windows"} <= set(schema["required"])


def test_nothing_of_it_listens_beyond_this_machine(server: Server) -> None:
    processes = [psutil.Process(server.command.process.pid), *server.processes()]
    found = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found
    assert all(_is_local(ip) for ip in found), found


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium")
@pytest.mark.parametrize("width", [1100, 390])
def test_a_person_chooses_a_file_and_sees_the_answer(
    server: Server, clip: Path, tmp_path: Path, width: int
) -> None:
    pytest.importorskip("websockets", reason="the browser is driven through a websocket")
    found = asyncio.run(_look(server.url, clip, tmp_path, width))
    answer = server.predict(clip)[1]
    assert found["label"] == answer["label"]
    assert found["shapes"] == len(answer["probabilities"])
    assert found["bars"] == len(answer["probabilities"])
    assert clip.name in found["name"]
    assert found["overflow"] == 0  # nothing to scroll sideways
    assert found["complaints"] == []
    if shots := os.environ.get("SCREENSHOTS"):
        (Path(shots) / f"page-{width}.png").write_bytes(found["picture"])


LOADED = (
    "document.readyState === 'complete' && document.getElementById('limits').textContent !== ''"
)
SEEN = """JSON.stringify({
    label: document.getElementById("label").textContent,
    name: document.getElementById("name").textContent,
    bars: document.querySelectorAll(".bar").length,
    shapes: document.querySelectorAll("#chart path").length,
    overflow: document.documentElement.scrollWidth - window.innerWidth > 0 ? 1 : 0,
    ready: !document.getElementById("result").hidden,
    state: document.getElementById("state").textContent,
})"""


async def _look(url: str, clip: Path, home: Path, width: int) -> dict[str, Any]:
    """Opens the page in Chromium, gives it the file, and reads what it shows."""
    import websockets

    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    browser = subprocess.Popen(
        [
            "chromium", *quiet.split(), "--disable-background-networking",
            "--disable-component-update", "--remote-debugging-port=0",
            f"--user-data-dir={home / 'browser'}", "about:blank",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file = home / "browser" / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE_S
        while not port_file.is_file() or len(port_file.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, "Chromium does not start"
            await asyncio.sleep(0.2)
        port = port_file.read_text().splitlines()[0]
        tabs = f"http://127.0.0.1:{port}/json/list"
        with urllib.request.urlopen(tabs, timeout=PATIENCE_S) as response:
            (tab,) = [t for t in json.loads(response.read()) if t["type"] == "page"]
        async with websockets.connect(
            tab["webSocketDebuggerUrl"], max_size=None, proxy=None
        ) as socket_:
            return await _drive(socket_, url, clip, width)
    finally:
        browser.kill()
        browser.wait()


async def _drive(connection: Any, url: str, clip: Path, width: int) -> dict[str, Any]:
    numbers = itertools.count(1)
    complaints: list[str] = []

    async def call(method: str, **given: Any) -> Any:
        number = next(numbers)
        await connection.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            message = json.loads(await asyncio.wait_for(connection.recv(), PATIENCE_S))
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                complaints.append(json.dumps(message["params"]))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    for domain in ("Runtime", "Log", "Page", "DOM"):
        await call(f"{domain}.enable")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    await call("Emulation.setDeviceMetricsOverride", **metrics)
    await call("Page.navigate", url=url)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        there = await call("Runtime.evaluate", expression=LOADED)
        if there["result"].get("value") is True:
            break
        assert time.monotonic() < deadline, "the page does not load"
        await asyncio.sleep(0.1)
    root = (await call("DOM.getDocument"))["root"]["nodeId"]
    node = (await call("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
    await call("DOM.setFileInputFiles", nodeId=node, files=[str(clip)])
    while True:
        value = (await call("Runtime.evaluate", expression=SEEN))["result"]["value"]
        if (found := json.loads(value))["ready"]:
            break
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)
    picture = await call("Page.captureScreenshot", captureBeyondViewport=True)
    # A page without an icon is asked for one by some browsers.
    heard = [text for text in complaints if "favicon" not in text]
    return {**found, "picture": base64.b64decode(picture["data"]), "complaints": heard}


def test_ctrl_c_ends_it_without_leftovers(server: Server) -> None:
    processes = server.processes()
    assert len(processes) > 3
    assert server.interrupt() == 0
    assert "Traceback" not in server.command.err
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert alive == []
    assert list(server.temporary.glob("serve-*")) == []
