"""A corpus made from a seed: source-filter voices and drawn faces, as real FLAC and MP4 files.

Each speaker has a voice (base pitch, formant scale, breathiness) and a face (skin, shape,
light); each emotion moves both. Happy and surprised sound alike; sad and fearful, and
neutral and angry, look alike; and every clip expresses its emotion with a strength of its
own, sometimes hardly at all: one modality cannot tell all classes apart, both together
can do better, and neither reaches 100 %. A tracker's view of the face comes with it, frame by
frame: action units with an error of their own for each speaker, noise and lost frames.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import lfilter

from datasets.clips import Corpus, DataError
from datasets.corpora.manifest import load_manifest
from datasets.storage.atomic import write_atomically

VERSION = 2
"""Version of what is rendered from a seed; a cache of it is named by it."""

LABELS = ("neutral", "happy", "sad", "angry", "fearful", "surprised")
SAMPLE_RATE_HZ = 16_000
FRAME_RATE_HZ = 12
FRAME_SIZE = (60, 100)
ACTION_UNITS = (
    "brow_raise",
    "brow_tilt",
    "eye_opening",
    "mouth_corners",
    "mouth_opening",
    "head_nod",
)
_TABLE = "action_units.csv"
_VOWELS_HZ = (
    (730, 1090, 2440),
    (530, 1840, 2480),
    (270, 2290, 3010),
    (570, 840, 2410),
    (300, 870, 2240),
)


@dataclass(frozen=True)
class _Prosody:
    """How an emotion sounds, relative to the speaker's own voice."""

    pitch: float  # factor on the base pitch
    pitch_range: float  # size of the pitch contour, in octaves
    slope: float  # rise of the pitch over the clip, in octaves
    energy: float  # in dB
    tempo: float  # syllables a second
    tilt: float  # pole of the low-pass on the source: higher is duller
    jitter: float  # cycle-to-cycle deviation of the period


@dataclass(frozen=True)
class _Expression:
    """How an emotion looks; all in units of the face's own size."""

    brow: float  # raised
    brow_tilt: float  # inner ends up
    eye: float  # opening
    mouth_curve: float  # corners up
    mouth_open: float
    nod: float  # head motion


_BRIGHT = _Prosody(1.35, 0.45, 0.10, 4.0, 4.8, 0.72, 0.010)
_PLAIN = _Prosody(1.0, 0.12, -0.05, 0.0, 4.0, 0.86, 0.008)
_PROSODY = {
    "neutral": _PLAIN,
    "happy": _BRIGHT,
    "surprised": _BRIGHT,
    "sad": _Prosody(0.88, 0.08, -0.20, -5.0, 2.9, 0.94, 0.015),
    "angry": _Prosody(1.18, 0.25, -0.10, 6.0, 5.2, 0.60, 0.030),
    "fearful": _Prosody(1.45, 0.20, 0.15, -1.0, 6.0, 0.82, 0.045),
}
_STERN = _Expression(-0.03, -0.05, 0.9, -0.05, 0.10, 0.01)
_WORRIED = _Expression(0.05, 0.30, 0.85, -0.35, 0.12, 0.01)
_EXPRESSION = {
    "neutral": _STERN,
    "angry": _STERN,
    "sad": _WORRIED,
    "fearful": _WORRIED,
    "happy": _Expression(0.05, 0.0, 0.75, 0.60, 0.25, 0.03),
    "surprised": _Expression(0.30, 0.05, 1.5, 0.0, 0.70, 0.02),
}


def load_synthetic(
    root: Path, *, speakers: int = 12, repetitions: int = 3, seed: int = 0
) -> Corpus:
    """Writes the corpus under `root` unless it is there already, and loads it.

    Args:
        root: Where the media files, `action_units.csv` and `manifest.csv` go.
        speakers: S.
        repetitions: Clips of each speaker in each emotion.
        seed: The corpus is a function of it and the two sizes.

    Raises:
        DataError: If `root` cannot be written.
    """
    if not all((root / name).is_file() for name in ("manifest.csv", _TABLE)):
        try:
            write_synthetic(root, speakers=speakers, repetitions=repetitions, seed=seed)
        except OSError as error:
            raise DataError(f"Cannot write to '{root}': {error.strerror or error}.") from error
    return load_manifest(root, name="synthetic", labels=LABELS, features=root / _TABLE)


def write_synthetic(root: Path, *, speakers: int, repetitions: int, seed: int) -> None:
    """Renders every clip to `root/speaker_NN/NAME.{flac,mp4}`; the manifest comes last."""
    rows: list[dict[str, str]] = []
    units: list[list[str]] = []
    for speaker in range(speakers):
        folder = root / f"speaker_{speaker:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        voice = _Voice(np.random.default_rng((seed, speaker, 1)))
        face = _Face(np.random.default_rng((seed, speaker, 2)))
        tracker = _Tracker(np.random.default_rng((seed, speaker, 100)))
        for emotion, label in enumerate(LABELS):
            for repetition in range(repetitions):
                clip = f"s{speaker:02d}-{label}-{repetition:02d}"
                generator = np.random.default_rng((seed, speaker, 3 + emotion, repetition))
                seconds = float(generator.uniform(1.2, 1.8))
                sound = voice.speak(_PROSODY[label], seconds, generator)
                soundfile.write(folder / f"{clip}.flac", sound, SAMPLE_RATE_HZ)
                pictures, movement = face.draw(_EXPRESSION[label], seconds, generator)
                _write_video(folder / f"{clip}.mp4", pictures)
                # Its draws are its own: media do not change with it.
                noise = np.random.default_rng((seed, speaker, 101 + emotion, repetition))
                for frame, values in enumerate(tracker.see(movement, noise)):
                    units.append([clip, str(frame), *(f"{value:.4f}" for value in values)])
                rows.append(
                    {
                        "clip": clip,
                        "speaker": folder.name,
                        "label": label,
                        "audio": f"{folder.name}/{clip}.flac",
                        "video": f"{folder.name}/{clip}.mp4",
                    }
                )
    _write_table(root / _TABLE, ["clip", "frame", *ACTION_UNITS], units)
    _write_table(root / "manifest.csv", list(rows[0]), [list(row.values()) for row in rows])


def _write_table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


def _strength(generator: np.random.Generator) -> float:
    """How far a clip goes from neutral to the full emotion: 0.8 on average."""
    return float(np.clip(generator.normal(0.8, 0.3), 0.05, 1.2))


class _Voice:
    """A speaker: base pitch, formant scale, breathiness."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.pitch_hz = float(generator.choice([120.0, 205.0]) * generator.uniform(0.85, 1.15))
        self.formant_scale = float((self.pitch_hz / 160.0) ** 0.25 * generator.uniform(0.95, 1.05))
        self.breath = float(generator.uniform(0.02, 0.08))
        self.tempo = float(generator.uniform(0.9, 1.1))
        self.level_db = float(generator.uniform(-2.0, 2.0))

    def speak(
        self, prosody: _Prosody, seconds: float, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """One utterance: glottal pulses through formants, syllable by syllable."""
        strength = _strength(generator)

        def mix(name: str, spread: float) -> float:
            plain, full = getattr(_PLAIN, name), getattr(prosody, name)
            return float(plain + strength * (full - plain) + generator.normal(0, spread))

        count = int(seconds * SAMPLE_RATE_HZ)
        time = np.arange(count) / SAMPLE_RATE_HZ
        rate = max(mix("tempo", 0.35) * self.tempo, 1.5)
        contour = mix("pitch_range", 0.05) * np.sin(
            2 * np.pi * rate / 2.5 * time + generator.uniform(0, 6.3)
        )
        octaves = (
            np.log2(max(mix("pitch", 0.06), 0.5)) + contour + mix("slope", 0.05) * time / seconds
        )
        pulses = _pulses(self.pitch_hz * 2**octaves, max(mix("jitter", 0.004), 0.0), generator)
        source = lfilter([1.0], [1.0, -float(np.clip(mix("tilt", 0.03), 0.3, 0.97))], pulses)
        source = source / (np.abs(source).max() + 1e-9) + self.breath * generator.normal(size=count)
        sound = np.zeros(count)
        edges = np.append(np.arange(0, count, int(SAMPLE_RATE_HZ / rate)), count)
        for start, stop in pairwise(edges):
            vowel = _VOWELS_HZ[generator.integers(len(_VOWELS_HZ))]
            syllable = source[start:stop]
            for formant_hz in vowel:
                syllable = _resonate(syllable, formant_hz * self.formant_scale)
            rise = np.sin(np.pi * (np.arange(stop - start) + 0.5) / (stop - start)) ** 0.5
            sound[start:stop] = syllable / (np.abs(syllable).max() + 1e-9) * rise
        level_db = -20.0 + self.level_db + mix("energy", 1.2)
        room = generator.normal(size=count) * 10 ** (-48 / 20)
        return np.clip(sound * 10 ** (level_db / 20) + room, -1, 1).astype(np.float32)


def _pulses(
    pitch_hz: NDArray[np.float64], jitter: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """An impulse at the start of every period of a moving pitch."""
    pulses = np.zeros(len(pitch_hz))
    position = 0.0
    while position < len(pitch_hz):
        pulses[int(position)] = 1.0
        period = SAMPLE_RATE_HZ / pitch_hz[int(position)]
        position += max(period * (1.0 + generator.normal(0, jitter)), 8.0)
    return pulses


def _resonate(
    signal: NDArray[np.float64], frequency_hz: float, bandwidth_hz: float = 110.0
) -> NDArray[np.float64]:
    """A two-pole resonance."""
    radius = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE_HZ)
    angle = 2 * np.pi * frequency_hz / SAMPLE_RATE_HZ
    return np.asarray(lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], signal))


class _Face:
    """A speaker: skin, hair, face shape, light."""

    def __init__(self, generator: np.random.Generator) -> None:
        tone = generator.uniform(0.35, 1.0)
        self.skin = tuple(float(c * tone) for c in (235, 195, 165))
        self.hair = tuple(float(c) for c in generator.uniform(10, 110, 3))
        self.background = tuple(float(c) for c in generator.uniform(60, 200, 3))
        self.width, self.height = generator.uniform(0.62, 0.78), generator.uniform(0.85, 1.0)
        self.eye_gap = generator.uniform(0.24, 0.32)
        self.brow_rest = generator.uniform(-0.03, 0.03)
        self.mouth_rest = generator.uniform(-0.06, 0.06)
        self.light = generator.uniform(0.75, 1.15)
        self.light_side = generator.uniform(-0.25, 0.25)

    def draw(
        self, expression: _Expression, seconds: float, generator: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """(V, H, W, 3) RGB frames of one utterance, and (V, 6) ACTION_UNITS that they show."""
        strength = _strength(generator)
        count = max(int(seconds * FRAME_RATE_HZ), 4)
        phase = generator.uniform(0, 6.3, 3)
        offset = generator.normal(0, 0.02, 2)
        spread = {n: float(generator.normal(0, 0.04)) for n in _Expression.__dataclass_fields__}

        def mix(name: str) -> float:
            plain, full = getattr(_STERN, name), getattr(expression, name)
            return float(plain + strength * (full - plain) + spread[name])

        pose = {name: mix(name) for name in _Expression.__dataclass_fields__}
        frames, movement = [], []
        for index in range(count):
            time = index / FRAME_RATE_HZ
            onset = min(1.0, 0.3 + 1.4 * index / count)  # the expression grows
            sway = np.sin(2 * np.pi * 0.7 * time + phase[0]) * pose["nod"]
            talk = 0.5 + 0.5 * np.sin(2 * np.pi * 3.2 * time + phase[1])
            frames.append(
                self._frame(
                    pose, onset, offset + np.array([0.02 * np.sin(time + phase[2]), sway]), talk
                )
            )
            movement.append(
                [
                    onset * pose["brow"],
                    onset * pose["brow_tilt"],
                    onset * (pose["eye"] - 1.0),
                    onset * pose["mouth_curve"],
                    onset * pose["mouth_open"] * (0.4 + 0.6 * talk),
                    sway,
                ]
            )
        noise = generator.normal(0, 4.0, (count, *FRAME_SIZE, 3))
        pictures = np.clip(np.stack(frames) + noise, 0, 255).astype(np.uint8)
        return pictures, np.asarray(movement)

    def _frame(
        self, pose: dict[str, float], onset: float, offset: NDArray[np.float64], talk: float
    ) -> NDArray[np.float64]:
        supersampling = 4
        height, width = FRAME_SIZE[0] * supersampling, FRAME_SIZE[1] * supersampling
        image = np.full((height, width, 3), self.background, np.float32)
        radius = height * 0.6
        centre = np.array([width / 2, height / 2]) + offset * height

        def at(x: float, y: float) -> tuple[int, int]:
            return int(centre[0] + x * radius), int(centre[1] + y * radius)

        def span(value: float) -> int:
            return max(int(value * radius), 1)

        cv2.ellipse(
            image,
            at(0, -0.12),
            (span(self.width * 1.12), span(self.height * 1.02)),
            0,
            180,
            360,
            self.hair,
            -1,
        )
        cv2.ellipse(
            image, at(0, 0), (span(self.width), span(self.height)), 0, 0, 360, self.skin, -1
        )
        opening = max(0.1 * (1 + onset * (pose["eye"] - 1)), 0.02)
        for side in (-1, 1):
            x = side * self.eye_gap
            cv2.ellipse(
                image, at(x, -0.2), (span(0.14), span(opening)), 0, 0, 360, (245, 245, 245), -1
            )
            cv2.circle(image, at(x, -0.2), span(min(0.07, opening)), (25, 25, 25), -1)
            brow = -0.42 - self.brow_rest - onset * 0.35 * pose["brow"]
            tilt = onset * pose["brow_tilt"] * 0.3
            cv2.line(
                image,
                at(x - side * 0.14, brow - tilt),
                at(x + side * 0.16, brow + tilt),
                self.hair,
                span(0.05),
            )
        curve = (self.mouth_rest + onset * pose["mouth_curve"]) * 0.22
        gap = max(onset * pose["mouth_open"] * (0.4 + 0.6 * talk), 0.02) * 0.22
        across = np.linspace(-1, 1, 17)
        bend = curve * across**2
        upper = [
            at(float(x) * 0.3, 0.48 - float(b) - gap * float(1 - x**2))
            for x, b in zip(across, bend, strict=True)
        ]
        lower = [
            at(float(x) * 0.3, 0.50 - float(b) + gap * float(1 - x**2))
            for x, b in zip(across, bend, strict=True)
        ]
        cv2.fillPoly(image, [np.array(upper + lower[::-1], np.int32)], (120, 30, 40))
        small = cv2.resize(image, FRAME_SIZE[::-1], interpolation=cv2.INTER_AREA)
        shade = self.light * (1 + self.light_side * np.linspace(-1, 1, FRAME_SIZE[1]))
        return np.asarray(small * shade[None, :, None], np.float64)


class _Tracker:
    """How a tracker sees one speaker: every unit with an offset, a scale and an error of its own."""

    # How far each unit moves between emotions: the unit of its errors.
    _REACH = np.asarray([0.12, 0.15, 0.25, 0.30, 0.18, 0.01])
    _OFFSET, _SCALE, _CLIP, _NOISE, _LOST = 0.5, 0.2, 0.3, 0.3, 0.05

    def __init__(self, generator: np.random.Generator) -> None:
        self.offset = generator.normal(0, self._OFFSET, len(self._REACH)) * self._REACH
        self.scale = np.exp(generator.normal(0, self._SCALE, len(self._REACH)))

    def see(
        self, movement: NDArray[np.float64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """(V, 6) movements → (V, 6) measurements; a frame that was lost repeats the one before."""
        bias = generator.normal(0, self._CLIP, movement.shape[1])
        noise = generator.normal(0, self._NOISE, movement.shape)
        seen = self.offset + self.scale * movement + (bias + noise) * self._REACH
        lost = generator.random(len(seen)) < self._LOST
        last_seen = np.maximum.accumulate(np.where(lost, 0, np.arange(len(seen))))
        return np.asarray(seen[last_seen])


def _write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE_HZ)
        stream.height, stream.width = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        # One thread, and no vector code, which at this width reads memory that nobody set:
        # the same seed gives the same bytes.
        stream.options = {
            "crf": "20",
            "preset": "veryfast",
            "threads": "1",
            "x264-params": "asm=0",
        }
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
