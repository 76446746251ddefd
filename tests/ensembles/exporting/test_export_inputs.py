"""Exports of experts that read features of every frame, saliency maps, or a frozen backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from datasets.features import FeatureTable, clip_means, read_features
from ensembles import EnsembleError
from ensembles.artifact.fold_networks import load_folded, read_plan
from ensembles.artifact.manifest import read_artifact
from ensembles.artifact.onnx_export import example_batch, input_names
from ensembles.bank.posterior_bank import PosteriorBank
from ensembles.exporting.finished_run import read_run
from ensembles.exporting.writer import export
from ensembles.inference.predictor import Clip, Predictor
from ensembles.predict import main
from models import BackboneEncoder, ClipShape, Expert, build_expert, get_architecture
from models.base import Backbone, Encoder
from models.frontends.frames import Features, Frames
from models.frontends.masks import frame_mask
from models.frontends.spectral import LogMel
from models.pretrained import TRANSFERS, find_checkpoints, sha256
from models.registry import _ARCHITECTURES, Checkpoint, register
from search.data.corpus import corpus_spec
from search.execution.trial_process import train
from search.trial_config import TrialConfig
from tests.small import SMALL
from tests.specs import context_of, spec_of

CLASSES = 6
FOLDS = 3
SHAPE = {
    "num_classes": CLASSES,
    "sample_rate_hz": 16_000,
    "seconds": 1.5,
    "frames": 8,
    "frame_size": [60, 100],
    "num_features": 3,
    "feature_steps": 12,
    "saliency_maps": True,
}


class Steps(Encoder):
    """Mean and last step of a feature sequence, through a layer."""

    kind = "feature_sequence"

    def __init__(self, *, shape: ClipShape) -> None:
        super().__init__()
        self.frontend = Features()
        self.recurrent = nn.GRU(shape.num_features, 4, batch_first=True)
        self.embedding_dim = 4

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, F) → (B, D)."""
        steps, _ = self.recurrent(x)
        keep = (~frame_mask(lengths, x.shape[1])).to(x.dtype)[:, :, None]
        mean: Tensor = (steps * keep).sum(dim=1) / lengths[:, None]
        return mean


class Looks(Encoder):
    """The colours of a clip, and where its saliency maps are bright if it is asked to look."""

    kind = "video"

    def __init__(self, *, shape: ClipShape, maps: bool = True) -> None:
        super().__init__()
        self.frontend = Frames(count=4, height=6, width=10, scaling="unit", maps=maps)
        self.layer = nn.Conv3d(4 if maps else 3, 5, (1, 6, 10))
        self.embedding_dim = 5

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, V, C, H, W) → (B, D)."""
        vector: Tensor = self.layer(x.transpose(1, 2)).mean(dim=(2, 3, 4))
        return vector


class Trunk(Backbone):
    """One layer over the bands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) → (B, T, width)."""
        keep = (~frame_mask(lengths, x.shape[1])).to(x.dtype)[:, :, None]
        return self.layer(x).relu() * keep, lengths


class OnTrunk(BackboneEncoder):
    """A head on a backbone."""

    kind = "audio"

    def __init__(self, *, shape: ClipShape, width: int = 7) -> None:
        super().__init__()
        self.frontend = LogMel(sample_rate_hz=shape.sample_rate_hz)
        self.backbone = Trunk(width)
        self.layer = nn.Linear(width, 5)
        self.embedding_dim = 5

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, width) → (B, D)."""
        vector: Tensor = self.layer(x.sum(dim=1) / lengths[:, None])
        return vector


@contextmanager
def our_architectures() -> Iterator[None]:
    """Registers them, and leaves the registry as it was: tests of other files iterate over it."""
    cost: Callable[..., float] = lambda settings, shape: 1.0  # noqa: E731
    checkpoint = Checkpoint(files=("trunk.pt",), source="here", settings={})
    with patch.dict(_ARCHITECTURES):
        register("test_steps", modality="video", inputs=("feature_sequence",), cost=cost)(Steps)
        register("test_looks", modality="video", inputs=("video",), cost=cost)(Looks)
        register(
            "test_trunk", modality="audio", inputs=("audio",), cost=cost, checkpoints=(checkpoint,)
        )(OnTrunk)
        yield


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """For one test at a time; a fixture of the module registers for itself."""
    with our_architectures():
        yield


def network(architecture: str, settings: Mapping[str, Any], fold: int, **how: Any) -> Expert:
    torch.manual_seed(fold)
    shape = ClipShape(**{**SHAPE, "frame_size": (60, 100)})  # type: ignore[arg-type]
    expert = build_expert(architecture, settings, shape, **how)
    with torch.no_grad():
        expert.classifier.weight.mul_(5)  # posteriors that can differ
    return expert.eval()


def write_expert(
    folder: Path, architecture: str, settings: Mapping[str, Any], **how: Any
) -> list[Expert]:
    """What a trial leaves: a file a fold without what is frozen, and the plan."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    networks = [network(architecture, settings, fold, **how) for fold in range(FOLDS)]
    for fold, expert in enumerate(networks):
        save_file(expert.learned_state(), folder / f"fold-{fold}.safetensors")
    plan = {
        "architecture": architecture, "settings": dict(settings), "training": {}, "shape": SHAPE
    }  # fmt: skip
    if frozen := networks[0].frozen_state():
        plan["frozen"] = "frozen-0123abcd.safetensors"
        save_file(frozen, folder.parent / plan["frozen"])
    (folder / "plan.json").write_text(json.dumps(plan))
    return networks


def run_of(small_run: Any, home: Path, *, recipe: str, kept: str) -> Path:
    """The small run as though it had chosen one of its experts, and kept that alone."""
    run = Path(shutil.copytree(small_run.path, home / "run"))
    summary = json.loads((run / "summary.json").read_text())
    summary["chosen_recipe"] = recipe
    for choice in summary["headline"]["fused"]["per_fold"]:
        choice["recipe"] = recipe
    (run / "summary.json").write_text(json.dumps(summary))
    for folder in (run / "weights").iterdir():
        if folder.name != kept:
            shutil.rmtree(folder)
    return run


def answers(folder: Path, *paths: Path, **how: Any) -> dict[str, list[Any]]:
    artifact = read_artifact(folder)
    return {
        backend: list(Predictor(artifact, backend).files(paths, **how))  # type: ignore[arg-type]
        for backend in ("onnx", "torch")
    }


# Features of every frame


@pytest.fixture(scope="module")
def of_steps(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported expert that reads a feature sequence."""
    home = tmp_path_factory.mktemp("steps")
    run = run_of(small_run, home, recipe="best video", kept="video-0000")
    with our_architectures():
        write_expert(run / "weights" / "video-0000", "test_steps", {})
        export(read_run(run), home / "ensemble")
    return home / "ensemble"


def table(clips: Mapping[str, int]) -> FeatureTable:
    """Clip → so many steps of three features."""
    generator = np.random.default_rng(0)
    rows = {c: generator.normal(size=(n, 3)).astype(np.float32) for c, n in clips.items()}
    return FeatureTable(("AU1", "AU2", "AU4"), rows)


def write_table(features: FeatureTable, path: Path) -> Path:
    """As a tracker's CSV, the columns in another order and with one too many."""
    names = features.names[::-1]
    lines = [",".join(["clip", "frame", "surplus", *names])]
    for clip, rows in features.rows.items():
        for frame, row in enumerate(rows):
            lines.append(",".join([clip, str(frame), "0", *(repr(float(v)) for v in row[::-1])]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_sequence_and_its_lengths_are_inputs_of_the_graph() -> None:
    assert input_names(["feature_sequence", "features"]) == [
        "feature_sequence", "feature_sequence_lengths", "features"
    ]  # fmt: skip
    shape = ClipShape(num_classes=2, num_features=3, feature_steps=10)
    batch = example_batch(["feature_sequence"], shape, clips=3, share=1.0, seed=0)
    assert batch["feature_sequence"].shape == (3, 10, 3)
    assert batch["feature_sequence_lengths"].tolist() == [10, 8, 6]
    assert not batch["feature_sequence"][2].any()
    assert not batch["feature_sequence"][1, 8:].any()


def test_an_expert_of_sequences_is_exported_with_its_features_names(of_steps: Path) -> None:
    artifact = read_artifact(of_steps)
    assert artifact.feature_names == ("AU1", "AU2", "AU4")
    assert artifact.inputs == {"feature_sequence"}
    assert (artifact.sample_rate_hz, artifact.frames) == (0, 0)
    card = (of_steps / "model-card.md").read_text()
    assert "`feature_sequence` (clips, steps, 3) float32" in card
    assert "from features of every frame." in card


def test_files_are_predicted_from_their_rows_frame_by_frame(
    of_steps: Path, small_run: Any, tmp_path: Path
) -> None:
    clips = {"s00-sad-00": 9, "s01-angry-00": 31, "s02-sad-00": 1}
    features = table(clips)
    paths = [small_run.media[clip] for clip in clips]
    read = read_features(write_table(features, tmp_path / "features.csv"))
    found = answers(of_steps, *paths, features=read)
    expert = load_folded(of_steps / "experts" / "video-0000")
    for backend in ("onnx", "torch"):
        for clip, answer in zip(clips, found[backend], strict=True):
            steps = torch.from_numpy(features.rows[clip])[None]
            lengths = torch.tensor([clips[clip]])
            with torch.no_grad():
                by_fold = expert({"feature_sequence": steps, "feature_sequence_lengths": lengths})
            expected = by_fold.mean(dim=0).softmax(dim=1)[0]
            assert answer.error is None
            np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-4)
    first, second, _ = found["onnx"]
    assert abs(first.probabilities["sad"] - second.probabilities["sad"]) > 1e-3


def test_one_row_a_clip_does_not_do_for_a_sequence(
    of_steps: Path, small_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = small_run.media["s00-sad-00"]
    assert main([str(of_steps), str(clip), "--features", str(small_run.features)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: '{clip}' has no feature_sequence, which the ensemble needs "
        "(feature_sequence: has one row of features, not one a frame)"
    ]


def test_the_command_reads_a_table_of_frames(
    of_steps: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(table({"s00-sad-00": 5}), tmp_path / "features.csv")
    clips = [small_run.media[name] for name in ("s00-sad-00", "s02-sad-00")]
    arguments = [str(of_steps), *map(str, clips), "--json", "--features", str(path)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    good, bad = (json.loads(line) for line in captured.out.splitlines())
    assert good["experts"] == ["video-0000"]
    assert "has no row 's02-sad-00' in the features" in bad["error"]


def test_experts_of_means_take_a_table_of_frames_too(exported: Path, small_run: Any) -> None:
    frames = table({"s00-sad-00": 9})
    means = FeatureTable(frames.names, {c: clip_means(rows) for c, rows in frames.rows.items()})
    clip = small_run.media["s00-sad-00"]
    (one,) = answers(exported, clip, features=frames)["onnx"]
    (other,) = answers(exported, clip, features=means)["onnx"]
    assert one.probabilities == other.probabilities
    assert one.notes == ()


# Saliency maps


@pytest.fixture(scope="module")
def of_maps(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported expert that looks at saliency maps, and one of sound that takes over."""
    home = tmp_path_factory.mktemp("maps")
    run = run_of(small_run, home, recipe="best video", kept="video-0000")
    shutil.copytree(small_run.path / "weights" / "audio-0000", run / "weights" / "audio-0000")
    with our_architectures():
        write_expert(run / "weights" / "video-0000", "test_looks", {"maps": True})
        export(read_run(run), home / "ensemble")
    return home / "ensemble"


def test_a_new_clip_lacks_its_map_and_others_take_over(of_maps: Path, small_run: Any) -> None:
    artifact = read_artifact(of_maps)
    assert artifact.inputs == {"video", "saliency"}
    for (answer,) in answers(of_maps, small_run.media["s00-sad-00"]).values():
        assert answer.experts == ("audio-0000",)
        assert answer.notes == ("no saliency: new clips come without a saliency map",)
    assert "a fourth channel, the map" in (of_maps / "model-card.md").read_text()


def test_where_nothing_takes_over_the_missing_map_is_the_error(
    of_maps: Path, small_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = small_run.media["s00-sad-00"]
    assert main([str(of_maps), str(clip), "--fold", "0"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: '{clip}' has no saliency, which the ensemble needs "
        "(saliency: new clips come without a saliency map)"
    ]


def test_decoded_clips_may_have_maps(of_maps: Path) -> None:
    artifact = read_artifact(of_maps)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (8, 60, 100, 4)).astype(np.uint8)
    other = frames.copy()
    other[..., 3] //= 3
    found = [
        Predictor(artifact, backend).clips([Clip("a", {"video": x}) for x in (frames, other)])
        for backend in ("onnx", "torch")
    ]
    for one, two in zip(*found, strict=True):
        assert one.experts == ("video-0000",)
        np.testing.assert_allclose(
            list(one.probabilities.values()), list(two.probabilities.values()), atol=1e-4
        )
    first, second = found[0]
    assert first.probabilities != second.probabilities


def test_who_does_not_look_at_maps_takes_clips_with_and_without(
    small_run: Any, tmp_path: Path
) -> None:
    run = run_of(small_run, tmp_path, recipe="best video", kept="video-0000")
    write_expert(run / "weights" / "video-0000", "test_looks", {"maps": False})
    artifact = export(read_run(run), tmp_path / "ensemble")
    assert artifact.inputs == {"video"}
    assert answers(tmp_path / "ensemble", small_run.media["s00-sad-00"])["onnx"][0].error is None
    frames = np.random.default_rng(0).integers(0, 256, (8, 60, 100, 4)).astype(np.uint8)
    clips = [Clip("with", {"video": frames}), Clip("without", {"video": frames[..., :3]})]
    for backend in ("onnx", "torch"):
        one, other = Predictor(artifact, backend).clips(clips)  # type: ignore[arg-type]
        assert one.probabilities == other.probabilities


# Frozen backbones


@pytest.fixture()
def frozen_settings(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """Settings of an expert on a frozen backbone, and the folder of its weights."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    torch.manual_seed(99)
    torch.save(Trunk(7).state_dict(), folder / "trunk.pt")
    found = {"file": "trunk.pt", "sha256": sha256(folder / "trunk.pt"), "settings": {"width": 7}}
    return {"transfer": "frozen", "checkpoint": found}, folder


@pytest.fixture()
def on_trunk(
    small_run: Any, tmp_path: Path, frozen_settings: tuple[dict[str, Any], Path]
) -> tuple[Path, list[Expert]]:
    """A run whose audio expert has a frozen backbone, and its networks."""
    run = run_of(small_run, tmp_path, recipe="best audio", kept="audio-0000")
    settings, weights = frozen_settings
    networks = write_expert(run / "weights" / "audio-0000", "test_trunk", settings, weights=weights)
    shutil.rmtree(weights)  # nobody has the pretrained file any more
    return run, networks


BATCH = {
    "audio": 0.1 * torch.randn(3, 9000, generator=torch.Generator().manual_seed(0)),
    "audio_lengths": torch.tensor([9000, 7000, 5000]),
}


def test_a_frozen_backbone_is_found_beside_the_experts(
    on_trunk: tuple[Path, list[Expert]],
) -> None:
    run, networks = on_trunk
    folder = run / "weights" / "audio-0000"
    assert not any("backbone" in key for key in networks[0].learned_state())
    assert read_plan(folder / "plan.json")["frozen"] == "frozen-0123abcd.safetensors"
    expert = load_folded(folder)
    with torch.no_grad():
        expected = torch.stack([network(BATCH).log_softmax(dim=1) for network in networks])
        assert torch.equal(expert(BATCH), expected)
    assert expected.std(dim=0).max() > 0.01, "the folds are not told apart"


def test_folds_share_one_backbone_in_memory(on_trunk: tuple[Path, list[Expert]]) -> None:
    expert = load_folded(on_trunk[0] / "weights" / "audio-0000")
    assert len({id(expert.network(k).encoder("audio").frontend) for k in range(FOLDS)}) == 1
    assert len({id(expert.network(k).classifier) for k in range(FOLDS)}) == FOLDS


def test_its_own_folder_comes_before_the_shared_one(
    on_trunk: tuple[Path, list[Expert]],
) -> None:
    folder = on_trunk[0] / "weights" / "audio-0000"
    expected = load_folded(folder).network(0).frozen_state()
    shared = folder.parent / "frozen-0123abcd.safetensors"
    shutil.copyfile(shared, folder / shared.name)
    shared.write_bytes(b"another")
    found = load_folded(folder).network(0).frozen_state()
    assert all(torch.equal(found[key], x) for key, x in expected.items())


def test_an_export_takes_the_backbone_along_and_signs_it(
    on_trunk: tuple[Path, list[Expert]], small_run: Any, tmp_path: Path
) -> None:
    run, _ = on_trunk
    artifact = export(read_run(run), tmp_path / "ensemble")
    own = tmp_path / "ensemble" / "experts" / "audio-0000" / "frozen-0123abcd.safetensors"
    assert own.read_bytes() == (run / "weights" / own.name).read_bytes()
    assert artifact.members["audio-0000"].frozen == own.name
    assert artifact.to_json() == read_artifact(tmp_path / "ensemble").to_json()
    signed = json.loads((tmp_path / "ensemble" / "ensemble.json").read_text())["files"]
    assert f"experts/audio-0000/{own.name}" in signed
    found = answers(tmp_path / "ensemble", small_run.media["s00-sad-00"])
    np.testing.assert_allclose(
        list(found["onnx"][0].probabilities.values()),
        list(found["torch"][0].probabilities.values()),
        atol=1e-4,
    )
    content = bytearray(own.read_bytes())
    content[-1] ^= 0xFF
    own.write_bytes(content)
    with pytest.raises(EnsembleError, match=r"frozen-0123abcd\.safetensors' is truncated or"):
        read_artifact(tmp_path / "ensemble")


def test_a_backbone_that_is_not_signed_is_refused(
    on_trunk: tuple[Path, list[Expert]], tmp_path: Path, edit_manifest: Callable[..., None]
) -> None:
    export(read_run(on_trunk[0]), tmp_path / "ensemble")
    name = "experts/audio-0000/frozen-0123abcd.safetensors"
    edit_manifest(tmp_path / "ensemble", lambda document: document["files"].pop(name))
    with pytest.raises(EnsembleError, match=f"no checksum of {name}"):
        read_artifact(tmp_path / "ensemble")


def lost(shared: Path, plan: Path) -> None:
    shared.unlink()


def halved(shared: Path, plan: Path) -> None:
    shared.write_bytes(shared.read_bytes()[:40])


def of_other_width(shared: Path, plan: Path) -> None:
    name = "encoders.audio.frontend.backbone.layer"
    save_file({f"{name}.weight": torch.zeros(8, 64), f"{name}.bias": torch.zeros(8)}, shared)


def of_other_names(shared: Path, plan: Path) -> None:
    save_file({"layer.weight": torch.zeros(7, 64)}, shared)


def named(file: str | None) -> Callable[[Path, Path], None]:
    def change(shared: Path, plan: Path) -> None:
        document = json.loads(plan.read_text())
        document["frozen"] = file
        plan.write_text(json.dumps(document))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lost, r"No such file: '.*/weights/frozen-0123abcd\.safetensors'\."),
        (halved, r"frozen-0123abcd\.safetensors' is damaged: "),
        (of_other_width, r"frozen-0123abcd\.safetensors' does not fit its plan: "),
        (of_other_names, r"does not fit its plan: encoders\.audio\.frontend.* is not in both"),
        (named(None), r"plan\.json' names no file of its frozen backbone's weights"),
        (named("../secret.safetensors"), r"plan\.json' is damaged: ValueError"),
        (named("frozen-../x.safetensors"), r"plan\.json' is damaged: ValueError"),
    ],
    ids=["lost", "halved", "other width", "other names", "none", "elsewhere", "hidden elsewhere"],
)
def test_a_backbone_that_is_not_the_networks_own_is_one_clear_error(
    on_trunk: tuple[Path, list[Expert]], damage: Callable[[Path, Path], None], message: str
) -> None:
    weights = on_trunk[0] / "weights"
    damage(weights / "frozen-0123abcd.safetensors", weights / "audio-0000" / "plan.json")
    with pytest.raises(EnsembleError, match=message) as error:
        load_folded(weights / "audio-0000")
    assert "\n" not in str(error.value)


# Pretrained backbones, trained on by a run

PRETRAINED = "spatial_transformer"
OF_PRETRAINED = {**SMALL[PRETRAINED], "frame_values": 810}


@pytest.mark.parametrize("transfer", [t for t in TRANSFERS if t != "scratch"])
def test_a_pretrained_backbones_export_predicts_what_the_run_did(
    transfer: str, small_run: Any, tmp_path: Path
) -> None:
    weights = tmp_path / "pretrained"
    weights.mkdir()
    torch.manual_seed(1)
    shape = ClipShape(num_classes=2, frames=4)
    backbone = build_expert(PRETRAINED, OF_PRETRAINED, shape).encoder("video").backbone
    original = {
        key: 3 * x if x.ndim > 1 else x.clone()  # clips that differ
        for key, x in backbone.state_dict().items()  # type: ignore[operator,union-attr]
    }
    save_file(original, weights / f"{PRETRAINED}.safetensors")
    (found,) = find_checkpoints(get_architecture(PRETRAINED), weights)
    run = run_of(small_run, tmp_path, recipe="best video", kept="video-0000")
    shutil.rmtree(run / "weights" / "video-0000")
    settings = {**OF_PRETRAINED, "transfer": transfer, "checkpoint": found.to_json()}
    training = {"epochs": 4, "batch_size": 9, "learning_rate": 0.001}
    corpus = corpus_spec(small_run.folder.config, small_run.data)
    context = context_of(run, replace(corpus, weights=str(weights)), seed=5)
    *_, last = train(spec_of("video-0000", TrialConfig.of(PRETRAINED, settings, training), context))
    assert last["percent"] == 100, last

    state = load_folded(run / "weights" / "video-0000").network(0).state_dict()
    kept = {k.rpartition(".backbone.")[2]: x for k, x in state.items() if ".backbone." in k}
    assert kept.keys() == original.keys()
    unchanged = all(torch.equal(x, original[key]) for key, x in kept.items())
    assert unchanged is (transfer == "frozen")

    shutil.rmtree(weights)  # an export needs nothing but the run
    artifact = export(read_run(run), tmp_path / "ensemble")
    bank = PosteriorBank.open(run / "bank")
    (entry,) = [e for e in bank.read() if (e.trial, e.percent) == ("video-0000", 100)]
    experts = bank.experts([entry])
    expected, folds = np.exp(experts.log_posteriors[0]), experts.table.folds
    for backend in ("onnx", "torch"):
        predictor = Predictor(artifact, backend)  # type: ignore[arg-type]
        for fold in range(FOLDS):
            rows = np.flatnonzero(folds == fold)
            paths = [small_run.media[experts.table.clips[row]] for row in rows]
            answered = list(predictor.files(paths, fold=fold))
            table = [list(answer.probabilities.values()) for answer in answered]
            np.testing.assert_allclose(table, expected[rows], atol=1e-4)
            assert np.ptp(expected[rows], axis=0).max() > 0.005, "all clips get the same"
