"""Limits of what a server takes, and how it refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets.media.containers import AUDIO_SUFFIXES, CONTAINER_SUFFIXES, MAX_CLIP_SECONDS
from ensembles import EnsembleError

SUFFIXES = AUDIO_SUFFIXES | CONTAINER_SUFFIXES


class Refused(Exception):
    """A request that gets no prediction.

    Args:
        status: HTTP status.
        text: One line for whoever asked.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one upload.

    Attributes:
        megabytes: Size of the file, in 10⁶ bytes.
        seconds: Length of the clip.
        decode_seconds: What its decoding may take; then the decoder is killed.
        window_seconds: Length of a window of the probabilities over time.
        hop_seconds: From one window to the next.
    """

    megabytes: float = 50.0
    seconds: float = 120.0
    decode_seconds: float = 60.0
    window_seconds: float = 2.0
    hop_seconds: float = 0.5

    def __post_init__(self) -> None:
        """Raises EnsembleError for what no server can keep."""
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise EnsembleError(f"`{name}` must be above 0, got {value:g}.")
        if self.seconds > MAX_CLIP_SECONDS:
            raise EnsembleError(
                f"A clip may last {MAX_CLIP_SECONDS:.0f} s at most, got --max-seconds "
                f"{self.seconds:g}."
            )

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return int(self.megabytes * 1e6)

    def check_bytes(self, count: int) -> None:
        """Raises Refused if a file of so many bytes is too large."""
        if count > self.bytes:
            raise Refused(413, f"The file is larger than {self.megabytes:g} MB (--max-mb).")

    def check_seconds(self, seconds: float) -> None:
        """Raises Refused if a clip of so many seconds is too long."""
        if seconds > self.seconds:
            raise Refused(
                413,
                f"The clip lasts {seconds:.1f} s, {self.seconds:g} s are allowed (--max-seconds).",
            )


def check_name(name: str) -> str:
    """The suffix of an upload's name.

    Raises:
        Refused: If no such file can be read.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        known = " ".join(sorted(SUFFIXES))
        raise Refused(415, f"'{name[:100]}' is no sound or video file by its name. Known: {known}.")
    return suffix
