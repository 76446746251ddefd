"""Crop of the frames that a network sees; `index.json` and every export record it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datasets.clips import DataError

KINDS = ("centre", "face")
MOST_MARGIN = 2.0


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How pictures are cropped to the frame size, always with its aspect.

    Attributes:
        kind: `centre`: scaled to cover the frame, and its centre; `face`: around the face.
        margin: Added on every side of the face, as a share of its size.
        detector: What finds faces: `haar`, the cascade that OpenCV carries, or `yunet`.
        model_sha256: Of YuNet's ONNX file; empty for the cascade.

    Raises:
        DataError: If one of them cannot be.
    """

    kind: Literal["centre", "face"] = "centre"
    margin: float = 0.3
    detector: Literal["haar", "yunet"] = "haar"
    model_sha256: str = ""

    def __post_init__(self) -> None:
        """Checks what an index, an export or a person says."""
        if self.kind not in KINDS:
            raise DataError(f"Unknown crop '{self.kind}'. Known: {', '.join(KINDS)}.")
        if not 0 <= self.margin <= MOST_MARGIN:
            raise DataError(
                f"The margin around a face is 0 to {MOST_MARGIN:g} times its size, "
                f"not {self.margin:g} (--face-margin)."
            )
        if self.detector not in ("haar", "yunet"):
            raise DataError(f"Unknown face detector '{self.detector}'. Known: haar, yunet.")
        if self.detector == "yunet" and not re.fullmatch("[0-9a-f]{64}", self.model_sha256):
            raise DataError("A crop by yunet needs the SHA-256 of its ONNX file.")

    @property
    def of_face(self) -> bool:
        """Whether faces are looked for."""
        return self.kind == "face"

    def to_json(self) -> dict[str, Any]:
        """Return what the crop depends on, and nothing else."""
        if not self.of_face:
            return {"kind": "centre"}
        document = {"kind": "face", "margin": self.margin, "detector": self.detector}
        return {**document, **({"model_sha256": self.model_sha256} if self.model_sha256 else {})}

    @staticmethod
    def from_json(document: Mapping[str, Any] | None) -> Crop:
        """The inverse of `to_json`; what was written before there was a choice is the centre's."""
        return Crop(**document) if document else Crop()

    def __str__(self) -> str:
        """For people."""
        if not self.of_face:
            return "the centre"
        by = "OpenCV's Haar cascade" if self.detector == "haar" else "YuNet"
        return f"the face that {by} finds, with a margin of {self.margin:g} of its size"


CENTRE = Crop()
