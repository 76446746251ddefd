"""An exported ensemble: one folder of plain numbers, which loading cannot make run anything.

`ensemble.json` says all, and holds a checksum of itself, of every file of the experts and of the
folder's own program, so that its SHA-256 as a file stands for the whole folder;
`experts/NAME.onnx` takes plain waveform, uint8 frames and features; `experts/NAME/` holds the
same networks as `plan.json` and safetensors, which this project's code rebuilds;
`face-model.onnx` is there where it found the faces that the frames show. The model card is for
people, who may add to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.clips import DataError
from datasets.media.containers import MAX_CLIP_SECONDS
from datasets.media.crop import CENTRE, Crop
from datasets.media.faces import FaceFinder, open_finder
from ensembles import EnsembleError
from ensembles.artifact.fitted_ensemble import Fused
from ensembles.fusion.postprocessing import PostProcessing

if TYPE_CHECKING:
    from models.registry import Answers

FORMAT_VERSION = 1
MANIFEST = "ensemble.json"
SCRIPT = "predict.py"
"""The folder's own program, for whoever has the folder alone; nothing here ever runs it."""
SOURCES = "emotion_predict"
"""The modules of this project that the program needs, in their packages."""
FACE_MODEL = "face-model.onnx"
"""YuNet, where the frames were cropped by it."""
FORMATS = ("onnx", "torch")
"""Formats of every expert in an export, unless fewer are asked for."""


@dataclass(frozen=True)
class Member:
    """One expert of an exported ensemble.

    Attributes:
        name: Its trial.
        modality: audio, video or early.
        architecture: A registered name.
        inputs: What it reads: audio, video, features, feature_sequence; and saliency, where its
            frames have a fourth channel.
        folds: How many fold networks it has.
        parameters: Of one fold's network.
        label_delay: Steps by which raters of traces were taken to be late; what it says of a step is
            told so much later.
        frozen: File of its frozen backbones, in the folder of its weights; None without any.
    """

    name: str
    modality: str
    architecture: str
    inputs: frozenset[str]
    folds: int
    parameters: int
    frozen: str | None = None
    label_delay: int = 0

    @property
    def onnx(self) -> str:
        """Its graph, in the folder."""
        return f"experts/{self.name}.onnx"

    @property
    def torch(self) -> str:
        """The folder of its weights, in the folder."""
        return f"experts/{self.name}"

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        document = {**self.__dict__, "inputs": sorted(self.inputs)}
        document = {key: value for key, value in document.items() if value is not None}
        return {k: v for k, v in document.items() if k != "label_delay" or v}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Member:
        """The inverse of `to_json`; a name that is no plain file name is refused."""
        if not re.fullmatch(r"\w[\w.+-]*", document["name"]):
            raise ValueError(f"expert name {document['name']!r}")
        return Member(**{**document, "inputs": frozenset(document["inputs"])})


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Content of `ensemble.json`.

    Attributes:
        folder: Where it lies.
        labels: (K,) class names.
        sample_rate_hz: Of the waveform that the networks take; 0 if none takes any.
        frames: V, frames taken evenly of a video, or usual for one; 0 if none is taken.
        frame_size: (H, W) in pixels.
        feature_names: (F,) columns of the features.
        members: Every expert, by name.
        fused: The ensemble for a clip that has every input.
        by_fold: For each fold, the ensemble chosen and fitted without it.
        substitutes: Inputs at hand → the ensemble where others are missing.
        about: Corpus, protocol, scores, versions: for the card, not for computing.
        formats: Of `FORMATS`, those that it holds.
        answers: What it says, see `ClipShape`; `labels` then name numbers.
        step_seconds: From one step of a trace to the next.
        window_seconds: Of the clips that networks of traces were trained on.
        processing: What is done to the whole ensemble's numbers in the end; None for classes.
        frame_rate: Frames taken of every second of a video instead; 0 for V of each.
        crop: Which part of the pictures the frames show.
    """

    folder: Path
    labels: tuple[str, ...]
    sample_rate_hz: int
    frames: int
    frame_size: tuple[int, int]
    feature_names: tuple[str, ...]
    members: Mapping[str, Member]
    fused: Fused
    by_fold: tuple[Fused, ...]
    substitutes: Mapping[frozenset[str], Fused]
    about: Mapping[str, Any]
    formats: tuple[str, ...] = FORMATS
    answers: Answers = "classes"
    step_seconds: float = 0.0
    window_seconds: float = 0.0
    processing: PostProcessing | None = None
    frame_rate: float = 0.0
    crop: Crop = CENTRE

    def face_finder(self) -> FaceFinder | None:
        """Return the finder of the faces that its frames show; None where none is looked for.

        Raises:
            EnsembleError: If it cannot be run here.
        """
        try:
            model = self.folder / FACE_MODEL if self.crop.detector == "yunet" else None
            return open_finder(self.crop, model) if self.frames else None
        except DataError as error:
            raise EnsembleError(str(error)) from error

    @property
    def inputs(self) -> frozenset[str]:
        """Everything that some expert of the whole ensemble reads."""
        return self.inputs_of(self.fused)

    @property
    def all_inputs(self) -> frozenset[str]:
        """Everything that some expert reads, also one that only takes over."""
        return frozenset().union(*(member.inputs for member in self.members.values()))

    def inputs_of(self, fused: Fused) -> frozenset[str]:
        """Return the inputs that an ensemble's experts read."""
        return frozenset().union(*(self.members[name].inputs for name in fused.experts))

    def check_fold(self, fold: int | None) -> None:
        """Raises EnsembleError if there is no such fold."""
        if fold is not None and not self.by_fold:
            raise EnsembleError("This ensemble was exported without its folds' own (--fold).")
        if fold is not None and not 0 <= fold < len(self.by_fold):
            raise EnsembleError(
                f"There is no fold {fold}; this ensemble has 0 to {len(self.by_fold) - 1} (--fold)."
            )

    def ensemble_for(self, available: frozenset[str], fold: int | None = None) -> Fused:
        """The ensemble for a clip.

        Args:
            available: Inputs that the clip has.
            fold: That of a cross-validation fold instead, as it was without that fold.

        Raises:
            EnsembleError: If the clip lacks what is needed.
        """
        self.check_fold(fold)
        fused = self.fused if fold is None else self.by_fold[fold]
        if self.inputs_of(fused) <= available:
            return fused
        able = [some for some in self.substitutes if some <= available]
        if fold is not None or not able:
            lacking = sorted(self.inputs_of(fused) - available)
            raise EnsembleError(f"has no {' and no '.join(lacking)}, which the ensemble needs")
        return self.substitutes[max(able, key=lambda some: (len(some), sorted(some)))]

    def to_json(self) -> dict[str, Any]:
        """The manifest, without the files' checksums."""
        return {
            "format_version": FORMAT_VERSION,
            "labels": list(self.labels),
            "sample_rate_hz": self.sample_rate_hz,
            "frames": self.frames,
            "frame_size": list(self.frame_size),
            "feature_names": list(self.feature_names),
            "experts": [member.to_json() for member in self.members.values()],
            "fused": self.fused.to_json(),
            "by_fold": [fused.to_json() for fused in self.by_fold],
            "substitutes": [
                {"inputs": sorted(some), **fused.to_json()}
                for some, fused in self.substitutes.items()
            ],
            "about": dict(self.about),
            **({"formats": list(self.formats)} if self.formats != FORMATS else {}),
            **self._of_numbers(),
            **({"frame_rate": self.frame_rate} if self.frame_rate else {}),
            **({"crop": self.crop.to_json()} if self.crop.of_face else {}),
        }

    def _of_numbers(self) -> dict[str, Any]:
        if self.answers == "classes":
            return {}
        return {
            "answers": self.answers,
            "step_seconds": self.step_seconds,
            "window_seconds": self.window_seconds,
            "processing": self.processing.to_json() if self.processing else None,
        }


def write_manifest(artifact: Artifact) -> None:
    """Writes `ensemble.json` with its own checksum and that of all files but the model card."""
    folder = artifact.folder
    paths = [folder / SCRIPT, folder / FACE_MODEL]
    paths += [path for name in (SOURCES, "experts") for path in (folder / name).rglob("*")]
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(paths)
        if path.is_file()
    }
    document = {**artifact.to_json(), "files": files}
    signed = {**document, "checksum": checksum(document)}
    (folder / MANIFEST).write_text(json.dumps(signed, indent=1))


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content without its checksum, however it is laid out."""
    content = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def manifest_sha256(folder: Path) -> str:
    """SHA-256 of `ensemble.json` as a file: that of the whole folder, by the checksums in it."""
    return _sha256(folder / MANIFEST)


def read_artifact(folder: Path, *, verify: str | None = None) -> Artifact:
    """Reads an exported ensemble and checks every file against its checksum.

    Args:
        folder: Made by `ensembles.export`; one without its own `predict.py` will do.
        verify: What `manifest_sha256` must be, as whoever made the folder told it.

    Raises:
        EnsembleError: Not an export, another format version, another folder than that of
            `verify`, or the name of the file that is missing, truncated or changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise EnsembleError(
            f"No {MANIFEST} in '{folder}'. Make one with: python -m ensembles.export RUN --out DIR"
        )
    content = path.read_bytes()
    if verify is not None:
        _check_sha256(path, content, verify)
    try:
        document = json.loads(content)
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise EnsembleError(
                f"'{folder}' is of format version {version}; this program reads version "
                f"{FORMAT_VERSION}. Export the run again."
            )
        if document["checksum"] != checksum(document):
            raise EnsembleError(
                f"'{path}' was changed: it does not match its own checksum. Export the run again."
            )
        artifact = _parse(folder, document)
        files = {str(name): str(digest) for name, digest in document["files"].items()}
        _check_names(artifact, files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, EnsembleError):
            raise
        raise EnsembleError(f"'{path}' is damaged: {error!r}. Export the run again.") from error
    for name, digest in files.items():
        _check_file(folder, name, digest)
    return artifact


def _check_sha256(path: Path, content: bytes, wanted: str) -> None:
    wanted = wanted.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise EnsembleError(f"A SHA-256 is 64 hexadecimal digits, not '{wanted}' (--verify).")
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise EnsembleError(
            f"'{path}' is not what was asked for: its SHA-256 is {found}, not {wanted} (--verify)."
        )


def _parse(folder: Path, document: Mapping[str, Any]) -> Artifact:
    classes = len(document["labels"])
    members = [Member.from_json(member) for member in document["experts"]]
    return Artifact(
        folder=folder,
        labels=tuple(document["labels"]),
        sample_rate_hz=int(document["sample_rate_hz"]),
        frames=int(document["frames"]),
        frame_size=(int(document["frame_size"][0]), int(document["frame_size"][1])),
        feature_names=tuple(document["feature_names"]),
        members={member.name: member for member in members},
        fused=Fused.from_json(document["fused"], classes),
        by_fold=tuple(Fused.from_json(fused, classes) for fused in document["by_fold"]),
        substitutes={
            frozenset(fused["inputs"]): Fused.from_json(fused, classes)
            for fused in document["substitutes"]
        },
        about=dict(document["about"]),
        formats=_formats(document.get("formats", FORMATS)),
        **_of_numbers(document, classes),
        frame_rate=float(document.get("frame_rate", 0.0)),
        crop=Crop.from_json(document.get("crop")),
    )


def _of_numbers(document: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    answers = document.get("answers", "classes")
    if answers == "classes":
        return {}
    if answers not in ("values", "traces"):
        raise ValueError(f"answers {answers!r}")
    step, window = float(document["step_seconds"]), float(document["window_seconds"])
    if answers == "traces" and not 0 < step <= window <= MAX_CLIP_SECONDS:
        raise ValueError(f"steps of {step} s in windows of {window} s")
    processing = document["processing"]
    return {
        "answers": answers,
        "step_seconds": step,
        "window_seconds": window,
        "processing": PostProcessing.from_json(processing, dimensions) if processing else None,
    }


def _formats(names: Sequence[str]) -> tuple[str, ...]:
    if not names or not set(names) <= set(FORMATS):
        raise ValueError(f"formats {names!r}")
    return tuple(names)


def _check_names(artifact: Artifact, files: Mapping[str, str]) -> None:
    """Whoever fuses is an expert of the manifest, and every file that it needs is signed."""
    if artifact.frames and artifact.crop.detector == "yunet" and FACE_MODEL not in files:
        raise ValueError(f"no checksum of {FACE_MODEL}")
    for fused in (artifact.fused, *artifact.by_fold, *artifact.substitutes.values()):
        strangers = [name for name in fused.experts if name not in artifact.members]
        if strangers or not fused.experts:
            raise ValueError(f"fuses the unknown experts {strangers}")
    for member in artifact.members.values():
        weights = [f"{member.torch}/fold-{fold}.safetensors" for fold in range(member.folds)]
        if member.frozen:
            weights.append(f"{member.torch}/{member.frozen}")
        needed = {"onnx": [member.onnx], "torch": [f"{member.torch}/plan.json", *weights]}
        for name in (name for kind in artifact.formats for name in needed[kind]):
            if name not in files:
                raise ValueError(f"no checksum of {name}")


def _check_file(folder: Path, name: str, digest: str) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EnsembleError(f"'{folder / MANIFEST}' names a file outside its folder: '{name}'.")
    if not path.is_file():
        raise EnsembleError(f"'{path}' is missing. Export the run again.")
    if _sha256(path) != digest:
        raise EnsembleError(
            f"'{path}' is truncated or changed: it does not match its checksum. Export the run again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
