"""Every architecture as an ONNX graph: the same posteriors, at any length and batch size."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from ensembles import EnsembleError
from ensembles.artifact.fold_networks import FoldedExpert, average_folds
from ensembles.artifact.onnx_export import (
    TOLERANCE,
    example_batch,
    input_names,
    run_session,
    to_onnx,
)
from ensembles.artifact.onnx_session import open_session
from models import ClipShape, architectures, build_expert, get_architecture
from tests.small import CASES as EVERY_CASE
from tests.small import PAIRS, SPEECH_LARGE, case_name, early

SHAPE = ClipShape(
    num_classes=3,
    sample_rate_hz=16_000,
    seconds=1.0,
    frames=8,
    frame_size=(60, 100),
    num_features=5,
    feature_steps=8,
)
# Of parts without steps one fusion will do: the rest of the graph is the parts' own.
SINGLE_STEPS = early(*PAIRS[0])
CASES = [c for c in EVERY_CASE if c[1] != SINGLE_STEPS or c[0] == "concatenation"]
NAMES = [case_name(*case) for case in CASES]
every_architecture = pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)


def shape_of(case: int) -> ClipShape:
    """Clips with saliency maps for a network that reads them, without for all others."""
    return replace(SHAPE, saliency_maps=CASES[case][1].get("guide") == "maps")


@cache
def exported(case: int) -> tuple[FoldedExpert, onnxruntime.InferenceSession]:
    """Two folds' networks, not quite untrained, and their graph; once a file."""
    architecture, settings = CASES[case]
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_expert(architecture, settings, shape_of(case))
        example = example_batch(network.kinds, shape_of(case), clips=6, share=1.0, seed=seed)
        fixed = network.preprocess(example)
        for kind in network.kinds:
            if network.encoder(kind).counts_statistics:
                network.encoder(kind).fit_statistics(fixed[kind], fixed[f"{kind}_lengths"])
        with torch.no_grad():
            network.train().answer(fixed)  # moves the statistics of batch normalisation
            network.classifier.weight.mul_(3)  # posteriors that can differ
            for parameter in network.parameters():
                if not parameter.any():  # such as a transformer's that begins at the identity
                    parameter.normal_(std=0.05)
        networks.append(network.eval())
    expert = FoldedExpert(networks)
    return expert, open_session(to_onnx(expert, shape_of(case)))


def probabilities(expert: FoldedExpert, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        by_fold: Tensor = expert(batch)
    return by_fold.exp()


# (clips, seconds): the example has 3 of 1 s.
@every_architecture
@pytest.mark.parametrize(
    ("clips", "seconds"), [(1, 0.31), (5, 0.83), (2, 2.57)], ids=["one", "shorter", "longer"]
)
def test_a_graph_does_what_the_network_does_at_other_sizes(
    case: int, clips: int, seconds: float
) -> None:
    expert, session = exported(case)
    batch = example_batch(expert.kinds, shape_of(case), clips=clips, share=seconds, seed=7)
    expected = probabilities(expert, batch)
    found = run_session(session, batch)
    assert found.shape == (2, clips, 3)
    torch.testing.assert_close(found.exp(), expected, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.01, "the folds are not told apart"


@every_architecture
def test_a_graph_takes_very_short_clips_as_the_network_does(case: int) -> None:
    expert, session = exported(case)
    for samples in (1, 160, 401):
        batch = example_batch(expert.kinds, shape_of(case), clips=1, share=0.5, seed=8)
        for kind, length in (("audio", samples), ("video", 1), ("feature_sequence", 1)):
            if kind in batch:
                batch[kind] = batch[kind][:, :length]
                batch[f"{kind}_lengths"] = torch.tensor([length])
        found, expected = run_session(session, batch).exp(), probabilities(expert, batch)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@every_architecture
def test_in_a_graph_too_a_clip_does_not_depend_on_its_batch(case: int) -> None:
    expert, session = exported(case)
    batch = example_batch(expert.kinds, shape_of(case), clips=4, share=1.3, seed=9)
    together = run_session(session, batch).exp()
    for clip in range(4):
        alone = {name: x[clip : clip + 1] for name, x in batch.items()}
        for kind in ("audio", "video", "feature_sequence"):
            if kind in alone:
                alone[kind] = alone[kind][:, : int(alone[f"{kind}_lengths"])]
        found = run_session(session, alone).exp()
        torch.testing.assert_close(found[:, 0], together[:, clip], atol=1e-5, rtol=0)


def inputs_of(name: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """What a network reads: audio, video and so on."""
    if get_architecture(name).modality != "early":
        return get_architecture(name).inputs
    return tuple(get_architecture(part["architecture"]).inputs[0] for part in settings.values())


FIRST_OF_INPUTS = {inputs_of(*CASES[case]): case for case in reversed(range(len(CASES)))}


@pytest.mark.parametrize("case", FIRST_OF_INPUTS.values(), ids=map("-".join, FIRST_OF_INPUTS))
def test_a_graph_names_its_inputs_and_outputs_and_averages_the_folds(case: int) -> None:
    expert, session = exported(case)
    assert [item.name for item in session.get_inputs()] == input_names(expert.kinds)
    assert [item.name for item in session.get_outputs()] == [
        "log_posteriors",
        "log_posteriors_by_fold",
    ]
    batch = example_batch(expert.kinds, shape_of(case), clips=2, share=0.9, seed=10)
    inputs = {item.name: batch[item.name].numpy() for item in session.get_inputs()}
    average, by_fold = (torch.from_numpy(x) for x in session.run(None, inputs))
    torch.testing.assert_close(average, average_folds(by_fold), atol=1e-5, rtol=0)
    torch.testing.assert_close(average.exp().sum(dim=1), torch.ones(2))


def test_every_kind_of_input_is_among_them() -> None:
    assert {kind for inputs in FIRST_OF_INPUTS for kind in inputs} == {
        kind for entry in architectures() for kind in entry.inputs
    }
    assert FIRST_OF_INPUTS.keys() >= {("audio", "features"), ("audio", "video")}


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm"])
def test_resampling_and_a_frozen_backbone_are_in_the_graph(name: str) -> None:
    shape = ClipShape(num_classes=3, sample_rate_hz=22_050, seconds=1.0)
    checkpoint = {"file": "elsewhere", "sha256": "0", "settings": {"config": SPEECH_LARGE}}
    settings = {"transfer": "frozen", "checkpoint": checkpoint}
    torch.manual_seed(0)
    expert = FoldedExpert([build_expert(name, settings, shape).eval()])
    with torch.no_grad():
        expert.network(0).classifier.weight.mul_(10)  # posteriors that can differ
    session = open_session(to_onnx(expert, shape))
    batch = example_batch(expert.kinds, shape, clips=2, share=1.7, seed=1)
    expected = probabilities(expert, batch)
    torch.testing.assert_close(run_session(session, batch).exp(), expected, atol=1e-4, rtol=0)
    assert (expected[0, 0] - expected[0, 1]).abs().max() > 1e-3, "the clips are not told apart"


def test_inputs_are_named_by_kind_with_lengths_for_sequences() -> None:
    assert input_names(["audio", "features"]) == ["audio", "audio_lengths", "features"]


class Forgetful(FoldedExpert):
    """Weighs the clip by a length that tracing takes for a constant."""

    def forward(self, batch: Any) -> Tensor:
        share = float(batch["audio"].shape[1]) / 16_000  # a plain number to the tracer
        return (super().forward(batch) * share).log_softmax(dim=2)


def test_a_graph_that_differs_from_its_network_is_refused() -> None:
    expert, _ = exported(0)
    forgetful = Forgetful([expert.network(0)])
    with pytest.raises(
        EnsembleError, match=r"differs from the network by .* for 1 clips of 0\.7 s; .* 0\.0001"
    ):
        to_onnx(forgetful, SHAPE)


def test_the_tolerance_is_what_the_documents_say() -> None:
    text = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    stated = re.findall(r"posteriors\s+within\s+(\S+),\s+or\s+the\s+export\s+is\s+refused", text)
    assert [float(number) for number in stated] == [TOLERANCE] == [1e-4]


@pytest.mark.parametrize("content", [b"", b"\x00", b"no graph at all", b"\x80\x04K\x01."])
def test_what_is_no_graph_is_one_clear_error(content: bytes) -> None:
    with pytest.raises(EnsembleError, match=r"no ONNX graph") as error:
        open_session(content)
    assert "\n" not in str(error.value)


def test_a_truncated_graph_is_one_clear_error() -> None:
    content = to_onnx(exported(NAMES.index("action_units"))[0], SHAPE)
    for share in (0.1, 0.5, 0.9, 0.999):
        with pytest.raises(EnsembleError, match="no ONNX graph"):
            open_session(content[: int(len(content) * share)])


def test_a_graph_of_other_inputs_is_one_clear_error() -> None:
    _, session = exported(NAMES.index("action_units"))
    with pytest.raises(EnsembleError, match="does not take these clips"):
        run_session(session, {"audio": torch.zeros(1, 10)})
    with pytest.raises(EnsembleError, match="does not take these clips"):
        run_session(session, {"features": torch.zeros(1, 4)})


def test_an_even_picture_gives_the_same_in_a_graph() -> None:
    # Nothing is left of it but the error of its mean, a thousandfold.
    torch.manual_seed(0)
    expert = FoldedExpert([build_expert("frame_cnn", {}, SHAPE)])
    network = expert.network(0).eval()
    with torch.no_grad():
        for parameter in network.encoder("video").parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    session = open_session(to_onnx(expert, SHAPE))
    for grey in (37, 100, 128, 200):
        batch = {
            "video": torch.full((1, 8, 60, 100, 3), grey, dtype=torch.uint8),
            "video_lengths": torch.tensor([8]),
        }
        with torch.inference_mode():
            wanted = expert(batch).exp()
        assert float((run_session(session, batch).exp() - wanted).abs().max()) < TOLERANCE
