"""Every architecture as an ONNX graph: the same posteriors, at any length and batch size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from ensembles import EnsembleError
from ensembles.folded import FoldedExpert, average_folds
from ensembles.onnx_graph import (
    TOLERANCE,
    example_batch,
    input_names,
    open_session,
    run_session,
    to_onnx,
)
from models import ClipShape, architectures, build_expert
from tests.small import SMALL, SPEECH_LARGE, small_settings

SHAPE = ClipShape(
    num_classes=3,
    sample_rate_hz=16_000,
    seconds=1.0,
    frames=8,
    frame_size=(60, 100),
    num_features=5,
    feature_steps=8,
)
_PICTURE = SMALL["spectrogram_cnn_rnn"]
CASES = [
    *((e.name, small_settings(e.name)) for e in architectures()),
    # The whole clip instead of a crop, and other layers behind the same name.
    ("functionals", {"hidden_units": 8}),
    ("logmel_resnet", {"recurrent_units": 0, "normalisation": "bin"}),
    ("wav2vec2", {"config": SPEECH_LARGE, "normalise_waveform": True, "frame_step": 1}),
    ("wavlm", {"config": SPEECH_LARGE, "normalise_waveform": True, "frame_step": 3}),
    ("spectrogram_cnn_rnn", {**_PICTURE, "crop_seconds": 0.0}),
    ("spectrogram_cnn_lstm", {**_PICTURE, "crop_seconds": 0.0}),
    ("spectrogram_cnn_rnn", {**_PICTURE, "one_step": True}),
    ("spectrogram_cnn_rnn", {**_PICTURE, "crop_seconds": 0.0, "colours": True}),
    ("cnn14", {"width": 2, "rate_hz": 32000, "hidden_units": 8}),
    ("alexnet", {"width": 2, "num_mels": 32, "colours": True, "hidden_units": 8}),
    ("residual_lstm", {"units": 4, "layers": 3, "stack": 3, "heads": 2, "trim_db": 0.0}),
    ("waveform_cnn_lstm", {"recurrent_units": 0}),
    ("frame_cnn", {"grey": False}),
    ("resnet_lstm", {**SMALL["resnet_lstm"], "recurrent_units": 0, "pooling": "mean"}),
    ("resnet_lstm", {**SMALL["resnet_lstm"], "bidirectional": True, "scaling": "imagenet"}),
    ("spatial_transformer", {**SMALL["spatial_transformer"], "guide": "none"}),
    ("spatial_transformer", {**SMALL["spatial_transformer"], "guide": "maps"}),
    ("r3d_18", {"frames": 8, "size": 32, "stages": 2, "pooling": "mean_max"}),
    ("s3d", {"frames": 8, "size": 32, "stages": 2}),
    ("swin3d_t", {"frames": 20, "size": 16, "stages": 2}),
]
_HIDDEN = (*_PICTURE, "config", "units", "audio", "video")
NAMES = [
    name + "".join(f"-{k}={v}" for k, v in settings.items() if k not in _HIDDEN or not v)
    for name, settings in CASES
]
every_architecture = pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)


def shape_of(case: int) -> ClipShape:
    """Clips with saliency maps for who reads them, without for all others."""
    return replace(SHAPE, saliency_maps=CASES[case][1].get("guide") == "maps")


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


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


@every_architecture
def test_a_graphs_first_output_is_the_folds_average(case: int) -> None:
    expert, session = exported(case)
    batch = example_batch(expert.kinds, shape_of(case), clips=2, share=0.9, seed=10)
    inputs = {item.name: batch[item.name].numpy() for item in session.get_inputs()}
    average, by_fold = (torch.from_numpy(x) for x in session.run(None, inputs))
    torch.testing.assert_close(average, average_folds(by_fold), atol=1e-5, rtol=0)
    torch.testing.assert_close(average.exp().sum(dim=1), torch.ones(2))


@every_architecture
def test_a_graph_names_its_inputs_and_outputs(case: int) -> None:
    expert, session = exported(case)
    assert [item.name for item in session.get_inputs()] == input_names(expert.kinds)
    assert [item.name for item in session.get_outputs()] == [
        "log_posteriors",
        "log_posteriors_by_fold",
    ]


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm"])
def test_resampling_and_a_frozen_backbone_are_in_the_graph(name: str) -> None:
    shape = ClipShape(num_classes=3, sample_rate_hz=22_050, seconds=1.0)
    checkpoint = {"file": "elsewhere", "sha256": "0", "settings": {"config": SPEECH_LARGE}}
    settings = {"transfer": "frozen", "checkpoint": checkpoint}
    torch.manual_seed(0)
    expert = FoldedExpert([build_expert(name, settings, shape).eval()])
    session = open_session(to_onnx(expert, shape))
    batch = example_batch(expert.kinds, shape, clips=2, share=1.7, seed=1)
    expected = probabilities(expert, batch)
    torch.testing.assert_close(run_session(session, batch).exp(), expected, atol=1e-4, rtol=0)
    assert (expected[0, 0] - expected[0, 1]).abs().max() > 1e-3, "the clips are not told apart"


def test_the_cases_hold_every_architecture() -> None:
    assert {name for name, _ in CASES} == {entry.name for entry in architectures()}


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
    assert TOLERANCE == 1e-4


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
