"""A corpus like RECOLA made from a seed: long recordings in which voice and face follow two moods.

Arousal and valence wander slowly. Arousal moves the voice (pitch, level, syllable rate) and opens mouth and
eyes; valence bends the mouth and, a little, brightens the voice: sound tells arousal, pictures tell
valence. Six raters say what they perceive, each late, with a middle, a reach and an error of
their own. It is written in the layout of RECOLA's original release, and read by its loader.
"""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from datasets.clips import DataError
from datasets.corpora.recola import DIMENSIONS, STEP_SECONDS

VERSION = 1
SAMPLE_RATE_HZ = 16_000
FRAME_RATE_HZ = 25
FRAME_SIZE = 96
RATERS = ("FM1 ", "FM2 ", "FM3 ", "FF1 ", "FF2 ", "FF3 ")
"""Their headers end in a space, as the release's do."""

_DONE = "synthetic.json"
_LATE_SECONDS = 1.2
"""How late raters are, on average."""


def make_synthetic_traces(
    root: Path, *, speakers: int = 12, minutes: float = 1.0, seed: int = 0
) -> None:
    """Writes the corpus under `root`, unless it is there already.

    Args:
        root: Where `RECOLA-Annotation`, `RECOLA-Audio-recordings` and `RECOLA-Video-recordings` go.
        speakers: One recording each.
        minutes: Of each recording.
        seed: The corpus is a function of it and the two sizes.

    Raises:
        DataError: Impossible sizes, another corpus is there, or `root` cannot be written.
    """
    if not 0.1 <= minutes <= 10:
        raise DataError(
            f"A synthetic recording lasts 0.1 to 10 minutes, not {minutes:g} (--minutes)."
        )
    said = {"version": VERSION, "speakers": speakers, "minutes": minutes, "seed": seed}
    done = root / _DONE
    try:
        if done.is_file():
            if json.loads(done.read_text()) != said:
                raise DataError(f"'{root}' holds another synthetic corpus. Name another --root.")
            return
        for number in range(speakers):
            _write_recording(root, f"P{number + 1:02d}", number, minutes, seed)
        done.write_text(json.dumps(said))
    except OSError as error:
        raise DataError(f"Cannot write to '{root}': {error.strerror or error}.") from error


def _write_recording(root: Path, name: str, number: int, minutes: float, seed: int) -> None:
    steps = round(minutes * 60 / STEP_SECONDS)
    generator = np.random.default_rng((seed, number))
    moods = {dimension: _mood(steps, generator) for dimension in DIMENSIONS}
    for dimension, mood in moods.items():
        path = root / "RECOLA-Annotation" / "emotional_behaviour" / dimension / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_ratings(mood, generator))
    sound = root / "RECOLA-Audio-recordings" / f"{name}.wav"
    sound.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(sound, _voice(moods["arousal"], moods["valence"], generator), SAMPLE_RATE_HZ)
    video = root / "RECOLA-Video-recordings" / f"{name}.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    _write_face(video, moods["arousal"], moods["valence"], generator)


def _mood(steps: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(S,) in about -1 to 1, changing within seconds."""
    slow = gaussian_filter1d(generator.normal(size=steps), 3.0 / STEP_SECONDS, mode="wrap")
    quick = gaussian_filter1d(generator.normal(size=steps), 1.0 / STEP_SECONDS, mode="wrap")
    mood = slow / slow.std() + 0.5 * quick / quick.std()
    return np.asarray(np.tanh(0.6 * mood + generator.normal(0, 0.15)))


def _ratings(mood: NDArray[np.float64], generator: np.random.Generator) -> str:
    """The file of one dimension: every rater sees the mood late and in a way of their own."""
    columns = []
    for _ in RATERS:
        late = round((_LATE_SECONDS + generator.normal(0, 0.3)) / STEP_SECONDS)
        seen = np.concatenate([np.full(max(late, 0), mood[0]), mood])[: len(mood)]
        error = gaussian_filter1d(generator.normal(size=len(mood)), 1.0 / STEP_SECONDS)
        rated = generator.uniform(0.3, 0.6) * seen + generator.normal(0, 0.1)
        rated = rated + 0.05 * error / (error.std() + 1e-9)
        columns.append(np.clip(np.concatenate([rated[:1], rated]), -1, 1))  # the row of 0 s too
    lines = ["time;" + ";".join(RATERS)]
    for step, values in enumerate(np.stack(columns, axis=1)):
        lines.append(f"{step * STEP_SECONDS:.2f};" + ";".join(f"{value:.4f}" for value in values))
    return "\n".join(lines) + "\n"


def _voice(
    arousal: NDArray[np.float64], valence: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float32]:
    """(L,) pulses through a resonance: pitch, level and rate follow arousal; brightness, valence."""
    count = round(len(arousal) * STEP_SECONDS * SAMPLE_RATE_HZ)
    at = np.linspace(0, len(arousal) - 1, count)
    high, bright = (np.interp(at, np.arange(len(x)), x) for x in (arousal, valence))
    base = generator.choice([120.0, 205.0]) * generator.uniform(0.85, 1.15)
    pitch = base * 2 ** (0.35 * high)
    phase = np.cumsum(pitch) / SAMPLE_RATE_HZ
    source = np.diff(np.floor(phase), prepend=0.0) + 0.01 * generator.normal(size=count)
    talk = np.cumsum(4.0 + 1.2 * high) / SAMPLE_RATE_HZ
    syllables = 0.35 + 0.65 * np.clip(np.sin(2 * np.pi * talk), 0, 1)
    dull = lfilter([1.0], [1.0, -0.95], source)
    sharp = lfilter([1.0], [1.0, -0.6], source)
    blend = 0.5 + 0.35 * bright
    voiced = syllables * ((1 - blend) * dull / dull.std() + blend * sharp / sharp.std())
    level = 10 ** ((-30.0 + 6.0 * high) / 20)
    room = 10 ** (-50 / 20) * generator.normal(size=count)
    sound = level * voiced / voiced.std() + room
    return np.asarray(np.clip(sound, -1, 1), np.float32)


def _write_face(
    path: Path,
    arousal: NDArray[np.float64],
    valence: NDArray[np.float64],
    generator: np.random.Generator,
) -> None:
    """One frame a step: the mouth's corners follow valence, its opening and the eyes arousal."""
    skin = tuple(float(c * generator.uniform(0.5, 1.0)) for c in (235, 195, 165))
    ground = tuple(float(c) for c in generator.uniform(60, 200, 3))
    rest = float(generator.normal(0, 0.06))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE_HZ)
        stream.height = stream.width = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": "23",
            "preset": "ultrafast",
            "threads": "1",
            "x264-params": "asm=0",
        }
        for step, (high, good) in enumerate(zip(arousal, valence, strict=True)):
            sway = 0.02 * np.sin(0.03 * step)
            image = _face(skin, ground, good + rest, high, sway)
            noisy = np.clip(image + generator.normal(0, 4.0, image.shape), 0, 255)
            frame = av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _face(
    skin: tuple[float, ...], ground: tuple[float, ...], curve: float, opening: float, sway: float
) -> NDArray[np.float32]:
    """(H, W, 3) of one moment."""
    size = FRAME_SIZE
    image = np.full((size, size, 3), ground, np.float32)

    def at(x: float, y: float) -> tuple[int, int]:
        return int(size * (0.5 + x + sway)), int(size * (0.5 + y))

    cv2.ellipse(image, at(0, 0), (int(0.34 * size), int(0.44 * size)), 0, 0, 360, skin, -1)
    eye = max(1, int(size * 0.035 * (1.2 + 0.6 * opening)))
    for side in (-0.13, 0.13):
        cv2.ellipse(image, at(side, -0.1), (int(0.06 * size), eye), 0, 0, 360, (245, 245, 245), -1)
        cv2.circle(image, at(side, -0.1), max(1, eye // 2), (25, 25, 25), -1)
    across = np.linspace(-1, 1, 13)
    bend = 0.07 * curve * across**2
    gap = (0.02 + 0.03 * (1 + opening)) * (1 - across**2)
    upper = [at(0.15 * x, 0.22 - b - g / 2) for x, b, g in zip(across, bend, gap, strict=True)]
    lower = [at(0.15 * x, 0.23 - b + g / 2) for x, b, g in zip(across, bend, gap, strict=True)]
    cv2.fillPoly(image, [np.array(upper + lower[::-1], np.int32)], (120, 30, 40))
    return image
