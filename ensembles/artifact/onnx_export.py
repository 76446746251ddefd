"""An expert as an ONNX graph: front end inside, any number of clips of any length."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import onnxruntime
import torch
from torch import Tensor, nn

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import FoldedExpert, average_folds
from ensembles.artifact.onnx_session import first_line, open_session
from models import ClipShape

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of a posterior between torch and ONNX that an export accepts."""

NUMBER_TOLERANCE = 1e-2
"""The same of numbers, which no softmax bounds, in deviations of what they were trained on."""

SEQUENCES = {"audio": "samples", "video": "frames", "feature_sequence": "steps"}
"""Inputs with a time axis, and what its steps are called."""
_PARITY = ((1, 0.7), (4, 1.0), (2, 1.9))
"""Batch sizes, and lengths in typical clips, that an export is checked at."""


class Graph(nn.Module):
    """Positional tensors, as a graph has them, instead of a named batch."""

    def __init__(self, expert: FoldedExpert) -> None:
        super().__init__()
        self.expert = expert
        self.names = input_names(expert.kinds, expert.answers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """→ (B, K) averaged log-posteriors, (folds, B, K) each fold's; or numbers, see `FoldedExpert`."""
        by_fold = self.expert(dict(zip(self.names, inputs, strict=True)))
        return average_folds(by_fold, self.expert.answers), by_fold


def input_names(kinds: Sequence[str], answers: str = "classes") -> list[str]:
    """The graph's inputs: a kind, and for sequences its lengths; for traces how many steps are wanted."""
    names = [
        name
        for kind in kinds
        for name in ((kind, f"{kind}_lengths") if kind in SEQUENCES else (kind,))
    ]
    return [*names, "trace_lengths"] if answers == "traces" else names


def output_name(answers: str) -> str:
    """Return the name of the graph's first output; the second one is that of each fold."""
    return "log_posteriors" if answers == "classes" else answers


def to_onnx(expert: FoldedExpert, shape: ClipShape) -> bytes:
    """Exports an expert, and checks that the graph does what the network does.

    Raises:
        EnsembleError: If they differ at another length or batch size than the example's.
    """
    graph = Graph(expert).eval()
    example = example_batch(expert.kinds, shape, clips=3, share=1.0, seed=0)
    buffer = io.BytesIO()
    axes: dict[str, dict[int, str]] = {
        name: {0: "clips", 1: SEQUENCES[name]} if name in SEQUENCES else {0: "clips"}
        for name in graph.names
    }
    said = output_name(expert.answers)
    over_time = expert.answers == "traces"
    axes[said] = {0: "clips", **({1: "trace_steps"} if over_time else {})}
    axes[f"{said}_by_fold"] = {1: "clips", **({2: "trace_steps"} if over_time else {})}
    with warnings.catch_warnings(), _silent_stderr(), torch.no_grad():
        warnings.simplefilter("ignore")  # on traced lengths, which the check below settles
        torch.onnx.export(
            graph,
            tuple(example[name] for name in graph.names),
            buffer,  # type: ignore[arg-type]  # takes files too
            input_names=graph.names,
            output_names=[said, f"{said}_by_fold"],
            dynamic_axes=axes,
            opset_version=OPSET,
            # torch.export fixes the length of recurrent networks, or fails on them.
            dynamo=False,
        )
    content = buffer.getvalue()
    session = open_session(content)
    check_parity(expert, shape, lambda batch: run_session(session, batch), "ONNX graph")
    return content


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The exporter's C++ part warns of recurrent layers on the file descriptor itself."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def run_session(session: onnxruntime.InferenceSession, batch: dict[str, Tensor]) -> Tensor:
    """Plain clips → (folds, B, K) log-posteriors, or numbers, see `FoldedExpert`.

    Raises:
        EnsembleError: If the graph takes other inputs, or gives something else.
    """
    try:
        inputs = {item.name: batch[item.name].numpy() for item in session.get_inputs()}
        (wanted,) = [o.name for o in session.get_outputs() if o.name.endswith("_by_fold")]
        return torch.from_numpy(session.run([wanted], inputs)[0])
    except Exception as error:  # onnxruntime's own have no common class
        raise EnsembleError(f"does not take these clips: {first_line(error)}") from error


def example_batch(
    kinds: Sequence[str], shape: ClipShape, *, clips: int, share: float, seed: int
) -> dict[str, Tensor]:
    """Clips of uneven length, the longest `share` of a typical one.

    The first are noise, the last of three or more silent or black or zero, the one before it a
    tone over faint noise, a grey picture or features that stand still: logarithms and divisions
    at their limits.
    """
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Tensor] = {}
    for kind in kinds:
        if kind == "features":
            batch[kind] = torch.randn(clips, shape.num_features, generator=generator)
            continue
        typical = {
            "audio": shape.seconds * shape.sample_rate_hz,
            "video": shape.frames,
            "feature_sequence": shape.feature_steps,
        }[kind]
        longest = max(2, round(share * typical))
        lengths = torch.linspace(longest, max(2, longest * 0.6), clips).long()
        if kind == "audio":
            values = 0.1 * torch.randn(clips, longest, generator=generator)
        elif kind == "video":
            size = (clips, longest, *shape.frame_size, 4 if shape.saliency_maps else 3)
            values = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        else:
            values = torch.randn(clips, longest, shape.num_features, generator=generator)
        if clips > 2:
            tone = 0.5 * torch.sin(0.1 * torch.arange(longest))
            still = 128 if kind == "video" else 1
            values[-2] = tone + 0.1 * values[-2] if kind == "audio" else still
            if kind == "video" and shape.answers != "classes":
                # Divided by its own deviation, a picture that stands quite still is float32's rounding.
                grain = values[-2].shape
                values[-2] += torch.randint(0, 24, grain, generator=generator, dtype=torch.uint8)
            values[-1] = 0
        behind = torch.arange(longest)[None] >= lengths[:, None]
        values[behind] = 0
        batch[kind], batch[f"{kind}_lengths"] = values, lengths
    if shape.answers == "traces":
        longest = max(2, round(share * shape.trace_steps))
        batch["trace_lengths"] = torch.linspace(longest, max(2, longest * 0.6), clips).long()
    return batch


def check_parity(
    expert: FoldedExpert,
    shape: ClipShape,
    run: Callable[[dict[str, Tensor]], Tensor],
    what: str,
) -> None:
    """Compares an expert with what it was exported as, at several lengths and batch sizes.

    Args:
        expert: The networks.
        shape: Of its clips.
        run: The export: plain clips → (folds, B, K) log-posteriors.
        what: It, for the message.

    Raises:
        EnsembleError: If a posterior, or a number, differs by more than `TOLERANCE`.
    """
    for seed, (clips, share) in enumerate(_PARITY, start=1):
        batch = example_batch(expert.kinds, shape, clips=clips, share=share, seed=seed)
        with torch.inference_mode():
            wanted, found = expert(batch), run(batch)
            accepted = TOLERANCE
            if expert.answers == "classes":
                wanted, found = wanted.exp(), found.exp()
            else:
                spread = expert.network(0).spread
                wanted, found, accepted = wanted / spread, found / spread, NUMBER_TOLERANCE
            difference = float((wanted - found).abs().max())
        if not difference <= accepted:
            raise EnsembleError(
                f"The {what} differs from the network by {difference:.1e} for {clips} clips "
                f"of {share * shape.seconds:.1f} s; an export accepts {accepted:g}."
            )
