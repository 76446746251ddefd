"""An ONNX graph, opened to be run on the CPU; without torch, for an export's own program."""

from __future__ import annotations

import re

import onnxruntime

from ensembles import EnsembleError

# A tensor's `external_data` has the key "location", field 1 of its entry, in any encoding of tag
# and length. Older runtimes follow it to any file.
_ELSEWHERE = re.compile(rb"(\x0a|\x8a\x80*\x00)(\x08|\x88\x80*\x00)location")


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    """A graph, ready to run on the CPU.

    Raises:
        EnsembleError: If it is none.
    """
    if _ELSEWHERE.search(content):
        raise EnsembleError("is no ONNX graph of ours: it has tensors in other files")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no common class
        raise EnsembleError(f"is no ONNX graph: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The type and the text of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
