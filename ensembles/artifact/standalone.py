"""Predicts files with the exported ensemble in this folder: `python -I predict.py FILE…`.

Needs onnxruntime, numpy, soundfile and av, and nothing else; where frames are cropped to faces,
opencv-python-headless 4.x too. Each FILE is one utterance, wav, flac, mp3, mp4, mkv …; features are
not read. `ensemble.json` says what is computed; the files that it lists are checked against their
checksums first, and nothing is unpickled. What reads and fuses lies in `emotion_predict`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.dont_write_bytecode = True
    if not sys.flags.safe_path:
        del sys.path[0]  # this folder: nothing beside this file is code, but the two packages
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    for _name in ("datasets", "ensembles"):
        _init = Path(__file__).resolve().parent / "emotion_predict" / _name / "__init__.py"
        _spec = spec_from_file_location(_name, _init)
        assert _spec
        assert _spec.loader
        sys.modules[_name] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])
import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from datasets.media.audio import as_waveform, read_audio
from datasets.media.containers import AUDIO_SUFFIXES, MediaError
from datasets.media.video import read_frames
from ensembles import EnsembleError
from ensembles.artifact.manifest import read_artifact
from ensembles.artifact.onnx_session import open_session

Arrays = dict[str, np.ndarray[Any, Any]]


class Answer(NamedTuple):
    """Class → probability; who took part; inputs that were missing, and why."""

    probabilities: dict[str, float]
    experts: list[str]
    notes: list[str]


class Ensemble:
    """The folder, read and checked; raises EnsembleError.

    Args:
        folder: Where `ensemble.json` lies.
        verify: The SHA-256 that it must have.
    """

    def __init__(self, folder: Path, verify: str | None = None) -> None:
        self.artifact = read_artifact(folder, verify=verify)
        self.faces = self.artifact.face_finder()
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def predict(self, path: Path) -> Answer:
        """The answer to a file; raises MediaError or EnsembleError."""
        arrays, missing = self._load(path)
        try:
            fused = self.artifact.ensemble_for(frozenset(arrays))
        except EnsembleError as error:
            why = "; ".join(f"{kind}: {text}" for kind, text in missing.items())
            raise EnsembleError(f"{error} ({why})") from error
        each = {name: self._log_posteriors(name, arrays) for name in fused.experts}
        (values,) = np.exp(fused.apply(each))
        return Answer(
            dict(zip(self.artifact.labels, values.tolist(), strict=True)),
            list(fused.experts),
            [f"no {kind}: {why}" for kind, why in missing.items()],
        )

    def _load(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        """Return the inputs that the file has, and why the others are missing."""
        if not path.is_file():
            raise MediaError("no such file")
        arrays: Arrays = {}
        missing: dict[str, str] = {}
        readers: dict[str, Callable[[Path], Any]] = {"audio": self._audio, "video": self._video}
        inputs = self.artifact.all_inputs
        for kind in sorted(inputs & readers.keys()):
            try:
                arrays[kind] = readers[kind](path)
            except MediaError as error:
                missing[kind] = str(error)
        if missing and not arrays:
            raise MediaError("; ".join(dict.fromkeys(missing.values())))
        missing.update(dict.fromkeys(sorted(inputs - readers.keys()), "not read by this script"))
        return arrays, missing

    def _audio(self, path: Path) -> Any:
        return as_waveform(read_audio(path, self.artifact.sample_rate_hz))

    def _video(self, path: Path) -> Any:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            raise MediaError("is a sound file")
        artifact = self.artifact
        return read_frames(
            path,
            artifact.frames,
            artifact.frame_size,
            rate_hz=artifact.frame_rate,
            faces=self.faces,
        )

    def _log_posteriors(self, name: str, arrays: Arrays) -> np.ndarray[Any, Any]:
        """(1, K): the average of an expert's fold networks."""
        if name not in self._sessions:
            path = self.artifact.folder / self.artifact.members[name].onnx
            try:
                self._sessions[name] = open_session(path.read_bytes())
            except EnsembleError as error:
                raise EnsembleError(f"'{path}' {error}") from error
        session, given = self._sessions[name], {}
        for item in session.get_inputs():
            kind = item.name.removesuffix("_lengths")
            length = np.asarray([len(arrays[kind])], np.int64)
            given[item.name] = arrays[kind][None] if item.name == kind else length
        return np.asarray(session.run(["log_posteriors"], given)[0], np.float64)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all predicted; 2: in one line each, what could not be."""
    parser = argparse.ArgumentParser(prog="predict.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and file")
    parser.add_argument("--verify", metavar="SHA256", help="which ensemble.json must have")
    given = parser.parse_args(arguments)
    try:
        ensemble = Ensemble(Path(__file__).resolve().parent, given.verify)
    except EnsembleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return max([_show(ensemble, path, given.json) for path in given.files])


def _show(ensemble: Ensemble, path: Path, as_json: bool) -> int:
    try:
        answer = ensemble.predict(path)
    except (EnsembleError, MediaError) as error:
        print(f"error: '{path}' {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"file": str(path), "error": str(error)}))
        return 2
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    if as_json:
        print(json.dumps({"file": str(path), "label": ranked[0][0], **answer._asdict()}))
    else:
        shown = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in ranked[:3])
        print(
            f"{path}  {shown}  ({len(answer.experts)} experts; {', '.join(answer.notes) or 'all'})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
