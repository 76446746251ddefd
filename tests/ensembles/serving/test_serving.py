"""What a server is made of, without Ray: limits, windows, the page, a decoder that may die."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ensembles import EnsembleError
from ensembles.artifact.manifest import read_artifact
from ensembles.inference.predictor import Clip, Predictor
from ensembles.inference.sliding_windows import timeline
from ensembles.serve import main
from ensembles.serving.answers import answer_uploads
from ensembles.serving.app import PAGE, Prediction, content_policy, make_app
from ensembles.serving.decoder import Decoded, Decoder, Part
from ensembles.serving.limits import Limits, Refused, check_name

# A decoder that answers `ready` and then does as it is told by the file's content.
FATEFUL = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    text = open(json.loads(line)["path"]).read()
    if text == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if text == "hang": time.sleep(600)
    print(json.dumps({"status": 422, "error": "The file is " + text + "."}), flush=True)
"""


@pytest.fixture()
def fateful(tmp_path: Path) -> Iterator[Decoder]:
    decoder = Decoder(tmp_path, Limits(), [sys.executable, "-c", FATEFUL])
    yield decoder
    decoder.close()


def refusal(decoder: Decoder, path: Path, content: str) -> Refused:
    path.write_text(content)
    with pytest.raises(Refused) as caught:
        decoder.decode(path)
    return caught.value


def test_a_decoder_that_crashes_is_named_and_the_next_file_goes_on(
    fateful: Decoder, tmp_path: Path
) -> None:
    path = tmp_path / "upload.wav"
    died = refusal(fateful, path, "crash")
    assert (died.status, "killed by SIGSEGV" in died.text) == (422, True)
    assert refusal(fateful, path, "well").text == "The file is well."


def test_a_decoder_that_hangs_is_killed_and_the_next_file_goes_on(
    fateful: Decoder, tmp_path: Path
) -> None:
    path, process = tmp_path / "upload.wav", fateful._process
    fateful.limits = Limits(decode_seconds=0.3)
    assert refusal(fateful, path, "hang").status == 504
    assert process.returncode == -signal.SIGKILL
    fateful.limits = Limits()
    assert refusal(fateful, path, "well").text == "The file is well."


def test_a_decoder_that_died_idle_is_started_again(fateful: Decoder, tmp_path: Path) -> None:
    assert refusal(fateful, tmp_path / "upload.wav", "well").status == 422
    fateful.close()
    assert refusal(fateful, tmp_path / "upload.wav", "well").text == "The file is well."


@pytest.fixture(scope="module")
def decoder(exported: Path) -> Iterator[Decoder]:
    """The real one; every test sets the limits that it needs."""
    decoder = Decoder(exported, Limits())
    yield decoder
    decoder.close()


def test_the_real_decoder_gives_what_the_predictor_loads(
    decoder: Decoder, exported: Path, small_run: Any, tmp_path: Path
) -> None:
    artifact = read_artifact(exported)
    media = next(iter(small_run.media.values()))
    path = tmp_path / f"upload{media.suffix}"
    path.write_bytes(media.read_bytes())
    decoder.limits = Limits(window_seconds=0.5)
    decoded = decoder.decode(path)
    expected = Predictor(artifact).load(path)
    assert decoded.clip.arrays.keys() == expected.arrays.keys() == {"audio", "video"}
    for kind, array in expected.arrays.items():
        np.testing.assert_array_equal(decoded.clip.arrays[kind], array)
    assert decoded.parts[0].start_s == 0
    assert all(part.clip.arrays["video"].shape[0] == artifact.frames for part in decoded.parts)
    decoder.limits = Limits(seconds=0.5)
    with pytest.raises(Refused, match=r"lasts .* 0.5 s are allowed") as caught:
        decoder.decode(path)
    assert caught.value.status == 413
    corrupt = tmp_path / "upload.wav"
    corrupt.write_bytes(b"RIFF nonsense")
    with pytest.raises(Refused, match=r"cannot be decoded") as caught:
        decoder.decode(corrupt)
    assert str(tmp_path) not in caught.value.text


def noise(name: str, seconds: float, rate_hz: int) -> Clip:
    generator = np.random.default_rng(int(10 * seconds))
    return Clip(
        name, {"audio": generator.normal(0, 0.1, int(seconds * rate_hz)).astype(np.float32)}
    )


def test_together_each_upload_gets_what_it_gets_alone(exported: Path) -> None:
    predictor = Predictor(read_artifact(exported))
    rate_hz = predictor.artifact.sample_rate_hz
    uploads = [
        Decoded(
            clip=noise(f"{seconds}", seconds, rate_hz),
            parts=tuple(
                Part(start, start + 1.0, noise(f"{seconds}", start + 1.0, rate_hz))
                for start in np.arange(0.0, seconds - 1.0, 0.5)
            ),
            seconds=seconds,
        )
        for seconds in (3.1, 1.0, 2.4)
    ]
    together = answer_uploads(predictor, uploads)
    for upload, result in zip(uploads, together, strict=True):
        (alone,) = answer_uploads(predictor, [upload])
        assert isinstance(result, Prediction)
        assert isinstance(alone, Prediction)
        assert result.name == upload.clip.name
        assert [w.start_s for w in result.windows] == [p.start_s for p in upload.parts]
        for mine, other in zip([result, *result.windows], [alone, *alone.windows], strict=True):
            assert sum(mine.probabilities.values()) == pytest.approx(1.0)
            assert mine.probabilities == pytest.approx(other.probabilities, abs=1e-4)


class Told:
    """A service that says what it was given."""

    def __init__(self, work: Path) -> None:
        self.limits, self.work = Limits(megabytes=0.001), work

    async def predict(self, path: Path, name: str) -> Prediction:
        text = path.read_text()
        return Prediction(
            name=name, label=text, probabilities={}, seconds=0, windows=[], experts=[], notes=[]
        )


def ask(app: Any, pieces: list[bytes], *, name: str, **headers: str) -> tuple[int, Any]:
    """`POST /predict` as an ASGI server would pass it on."""
    sent: list[Any] = []
    waiting = [
        {"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1}
        for i, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:8000", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "root_path": "", "scheme": "http",
        "query_string": f"name={name}".encode(), "http_version": "1.1",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent)
    assert b"content-security-policy" in dict(sent[0]["headers"])
    return sent[0]["status"], json.loads(body)


@pytest.fixture()
def app(tmp_path: Path) -> Any:
    from ensembles.serving.app import own_service

    app = make_app(["127.0.0.1", "localhost"])
    app.dependency_overrides[own_service] = lambda: Told(tmp_path)
    return app


def test_an_upload_arrives_whole_and_leaves_no_file(app: Any, tmp_path: Path) -> None:
    status, answer = ask(app, [b"ab", b"cd"], name="x.wav")
    assert (status, answer["label"], answer["name"]) == (200, "abcd", "x.wav")
    assert list(tmp_path.iterdir()) == []


def test_too_large_is_refused_announced_or_not_and_leaves_no_file(app: Any, tmp_path: Path) -> None:
    for headers in ({"content_length": "1001"}, {}):
        status, answer = ask(app, [b"a" * 600, b"b" * 401], name="x.wav", **headers)
        assert (status, answer["error"]) == (413, "The file is larger than 0.001 MB (--max-mb).")
    assert ask(app, [b"a" * 600, b"b" * 400], name="x.wav")[0] == 200
    assert list(tmp_path.iterdir()) == []


def test_other_types_and_other_sites_are_refused(app: Any) -> None:
    assert ask(app, [b"a"], name="x.exe")[0] == 415
    assert ask(app, [b"a"], name="x.wav", host="evil.example:8000")[0] == 403
    assert ask(app, [b"a"], name="x.wav", sec_fetch_site="cross-site")[0] == 403
    with pytest.raises(Refused, match=r"'x' is no sound or video file by its name"):
        check_name("x")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = PAGE.read_text()
    assert re.findall(r"(?:src|href)=|@import|url\(", html) == []
    assert set(re.findall(r"https?://[^\"]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in html
    assert "default-src 'none'" in content_policy(html)


def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, text in (
            ([str(tmp_path / "none")], "No ensemble.json in"),
            ([str(exported), "--port", port], f"Cannot listen on 127.0.0.1:{port}: "),
            ([str(exported), "--max-mb", "0"], "`megabytes` must be above 0, got 0."),
            ([str(exported), "--replicas", "0"], "--replicas must be 1 or more, got 0."),
            ([str(exported), "--verify", "0" * 64], "ensemble.json' is not what was asked for"),
        ):
            assert main(arguments) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ")
            assert text in line


def test_a_clip_may_not_be_allowed_longer_than_can_be_read() -> None:
    with pytest.raises(EnsembleError, match=r"600 s at most, got --max-seconds 601"):
        Limits(seconds=601)


def test_windows_are_those_of_predict(decoder: Decoder, tmp_path: Path, exported: Path) -> None:
    predictor = Predictor(read_artifact(exported))
    rate_hz = predictor.artifact.sample_rate_hz
    path = tmp_path / "tone.wav"
    tone = 0.1 * np.sin(np.arange(int(3.7 * rate_hz)) * 0.1)
    tone[int(2.2 * rate_hz) :] = 0.0  # the last window is silent
    soundfile.write(path, tone, rate_hz)
    decoder.limits = Limits(window_seconds=1.5, hop_seconds=1.0)
    decoded = decoder.decode(path)
    (result,) = answer_uploads(predictor, [decoded])
    moments = list(timeline(predictor, path, 1.5, 1.0))
    assert isinstance(result, Prediction)
    assert [(w.start_s, w.end_s) for w in result.windows] == [
        (0, 1.5),
        (1, 2.5),
        (2, 3.5),
        (2.2, 3.7),
    ]
    for window, moment in zip(result.windows, moments, strict=True):
        assert window.start_s == pytest.approx(moment.start)
        assert window.probabilities == pytest.approx(moment.answer.probabilities, abs=1e-5)
        assert bool(window.error) == bool(moment.reason)
    assert "is silent" in str(result.windows[-1].error)
    assert str(tmp_path) not in str(result)


def test_a_long_upload_is_looked_at_in_larger_steps(
    decoder: Decoder, tmp_path: Path, exported: Path
) -> None:
    rate_hz = read_artifact(exported).sample_rate_hz
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(61 * rate_hz) * 0.1), rate_hz)
    decoder.limits = Limits(window_seconds=2.0, hop_seconds=0.1)
    parts = decoder.decode(path).parts
    assert len(parts) == 120
    assert (parts[0].start_s, parts[-1].end_s) == (0.0, pytest.approx(61.0))
