"""Trees of RAVDESS's, CREMA-D's and IEMOCAP's layout, with sound that tells the emotions apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ, SECONDS = 8000, 0.4
_TONES_HZ = {
    "neutral": 200, "calm": 260, "happy": 900, "sad": 350, "angry": 1500, "fearful": 1100, "disgust": 500,
    "surprised": 2100,
}  # fmt: skip
_RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_CREMA_D = {
    "ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
_IEMOCAP = {"ang": "angry", "hap": "happy", "neu": "neutral", "sad": "sad", "exc": "happy"}


def write_tone(path: Path, emotion: str, seed: int, pitch: float = 1.0) -> None:
    """The emotion's tone under a noise of its own; `pitch` raises it by a factor."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(RATE_HZ * SECONDS)) / RATE_HZ
    tone = np.sin(2 * np.pi * pitch * _TONES_HZ[emotion] * time + generator.uniform(0, 6))
    noise = generator.normal(0, 0.3, len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * (tone + noise), RATE_HZ, subtype="PCM_16")


def write_ravdess(root: Path, actors: tuple[int, ...] = (2, 3, 10, 8, 1)) -> Path:
    """Eight spoken emotions of each actor; by default an actor of every fold of Luna-Jiménez et al."""
    for actor in actors:
        for number, emotion in enumerate(_RAVDESS, start=1):
            name = f"03-01-{number:02d}-01-01-01-{actor:02d}.wav"
            write_tone(root / f"Actor_{actor:02d}" / name, emotion, 100 * actor + number)
    return root


def write_crema_d(root: Path, actors: tuple[int, ...] = (1001, 1002, 1003, 1004, 1005)) -> Path:
    """Six emotions of each actor, at a higher pitch than RAVDESS's: not all are told apart by who knows those."""
    for actor in actors:
        for number, (code, emotion) in enumerate(_CREMA_D.items()):
            path = root / "AudioWAV" / f"{actor}_DFA_{code}_XX.wav"
            write_tone(path, emotion, 100 * actor + number, pitch=1.25)
    return root


def write_iemocap(root: Path) -> Path:
    """Five sessions of two actors, of each four emotions and an excited turn; three raters a turn."""
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
        for number, (code, emotion) in enumerate(_IEMOCAP.items()):
            for letter in "FM":
                clip = f"{dialogue}_{letter}{number:03d}"
                lines.append(
                    f"[{number:.4f} - {number + 0.9:.4f}]\t{clip}\t{code}\t[2.5000, 3.0000, 3.5000]\n"
                    f"C-E1:\t{code};\t()\nC-E2:\t{code};\t()\nC-E3:\tfru;\t()\n\n"
                )
                path = root / f"Session{session}" / "sentences" / "wav" / dialogue / f"{clip}.wav"
                write_tone(path, emotion, 1000 * session + 10 * number + (letter == "M"))
        labels = root / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("".join(lines))
    return root
