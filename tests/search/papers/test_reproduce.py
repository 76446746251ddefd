"""`--reproduce PAPER`: what the paper trained and nothing else, its flaw first, its figures beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from datasets.clips import Corpus
from ensembles.bank.clip_table import ClipTable
from ensembles.bank.posterior_bank import Experts
from ensembles.metrics import log_softmax
from models import ClipShape, get_architecture
from search.config import ConfigError, SearchConfig
from search.data.corpus import load_corpus
from search.data.training_data import TrainingData
from search.papers.published import PAPERS
from search.papers.reproduce import completed, reproduced, scope_of
from search.run import main
from search.space.scope import SearchScope
from search.trial_config import TrialConfig
from tests.search.backbones import write as write_backbone
from tests.tiny import make_tiny_shards


@pytest.fixture(scope="module")
def own_shards(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the user's own, with features: what a paper without a loader is reproduced on."""
    out = tmp_path_factory.mktemp("shards") / "own"
    make_tiny_shards(tiny_corpus, out, name="manifest")
    return out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reproduce", "smith1999"], "Unknown paper 'smith1999'. Known: singh2020, tzirakis2017, luna2021"),
        (["--reproduce", "tzirakis2017"], "tzirakis2017 needs shards of recola, these are of tiny"),
        (["--reproduce", "luna2022", "--only", "cnn14"], "trains what the paper trained: leave out only"),
        (["--reproduce", "luna2022"], "needs shards of ravdess, these are of tiny"),
        (["--reproduce", "luna2021", "--metric", "uar"], "leave out metric"),
    ],
)  # fmt: skip
def test_what_cannot_be_reproduced_is_said_in_one_line(
    tiny_shards: Path, tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    given = ["--data", str(tiny_shards), "--runs-dir", str(tmp_path / "runs")]
    given += ["--cache-dir", str(cache_folder), "--protocol", "speaker-kfold:2"]
    assert main([*given, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_paper_needs_data() -> None:
    with pytest.raises(ConfigError, match="luna2022 needs --data with shards of ravdess"):
        completed(SearchConfig(reproduce="luna2022"))
    kept = completed(SearchConfig(reproduce="singh2020", data="x"))
    assert kept.class_names == ("happy", "angry", "sad", "neutral")
    assert completed(SearchConfig(reproduce="luna2021", data="x")).protocol == "ravdess-luna5"


def offered(shards: Path, cache_folder: Path, paper: str, **settings: Any) -> SearchScope:
    config = SearchConfig(
        data=str(shards), cache_dir=str(cache_folder), protocol="speaker-kfold:2", reproduce=paper, **settings
    )  # fmt: skip
    return scope_of(config, load_corpus(config, Console(quiet=True)))


def test_what_is_given_is_the_papers_and_the_rest_is_said(
    own_shards: Path, cache_folder: Path
) -> None:
    scope = offered(own_shards, cache_folder, "luna2022")
    assert list(scope.given) == ["video"]
    plans = {label: TrialConfig.from_json(p) for label, p in scope.given["video"].items()}
    assert [p.architecture for p in plans.values()] == ["action_unit_lstm", *["action_units"] * 2]
    assert [p.settings.get("hidden_units") for p in plans.values()] == [None, 80, 0]
    assert all(p.training.schedule == "constant" for p in plans.values())
    assert all(p.training.weight_decay == p.training.mixup == 0.0 for p in plans.values())
    assert "pretrained weights" in scope.why_not["audio: wav2vec2-xlsr, fine-tuned"]
    assert SearchScope.from_json(json.loads(json.dumps(scope.to_json()))).given == scope.given


def test_early_fusion_is_given_with_the_papers_parts(own_shards: Path, cache_folder: Path) -> None:
    scope = offered(own_shards, cache_folder, "singh2020", epochs=3)
    assert {side: len(labels) for side, labels in scope.given.items()} == {"audio": 3, "early": 1}
    (joined,) = (TrialConfig.from_json(p) for p in scope.given["early"].values())
    assert joined.parts == {"audio": "spectrogram_cnn_rnn", "video": "cnn3d"}
    assert joined.settings["audio"]["settings"]["one_step"]
    assert joined.training.epochs == 3
    assert scope.pairs == [("spectrogram_cnn_rnn", "cnn3d")]


def test_pretrained_weights_are_taken_unless_they_know_the_speakers(
    tiny_data: TrainingData, tmp_path: Path
) -> None:
    name = "spatial_transformer"
    config = SearchConfig(reproduce="luna2021", data="x")
    data = TrainingData(tiny_data.cache, tiny_data.folds, weights=lambda: tmp_path)
    write_backbone(tmp_path, name, tiny_data, [])
    (plan,) = scope_of(config, data).given["video"].values()
    assert plan["settings"]["transfer"] == "finetune"
    assert plan["settings"]["checkpoint"]["file"] == f"{name}.safetensors"
    index = tiny_data.index
    met = {"corpus": index.corpus, "checksum": "x", "speakers": [index.clips[0].speaker]}
    write_backbone(tmp_path, name, tiny_data, [met])
    with pytest.raises(ConfigError, match="were trained on speakers of this corpus"):
        scope_of(config, TrainingData(tiny_data.cache, tiny_data.folds, weights=lambda: tmp_path))


@pytest.mark.parametrize("name", [name for name, paper in PAPERS.items() if paper.settings])
def test_every_setting_is_one_that_our_networks_and_training_know(name: str) -> None:
    for one in PAPERS[name].settings.values():
        entry = get_architecture(one.architecture)
        assert entry.modality == one.modality
        assert {*one.settings} <= {*entry.arguments, *entry.further_settings, "audio", "video"}
        plan = TrialConfig.of(one.architecture, one.settings, one.training)
        for side, part in plan.parts.items():
            own = plan.settings.get(side, {}).get("settings", {})
            assert {*own} <= {*get_architecture(part).arguments}
        assert all(0 < value < 1 for value in one.published.values())
    for fusion in PAPERS[name].fusions.values():
        assert {*fusion.members} <= {*PAPERS[name].settings}


def test_fusion_is_fitted_for_each_fold_on_the_others() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    folds = np.arange(240) // 80
    table = ClipTable(
        clips=tuple(f"clip{n}" for n in range(240)),
        speakers=tuple(f"speaker{n // 20:02}" for n in range(240)),
        labels=labels,
        folds=folds,
        classes=("a", "b", "c"),
    )
    logits = generator.normal(size=(3, 240, 3))
    logits[:, np.arange(240), labels] += np.array([0.5, 1.0, 1.5])[:, None]
    names = ("audio-0000", "video-0000", "video-0001")
    experts = Experts(table, names, ("audio", "video", "video"), log_softmax(logits))
    (fusion,) = PAPERS["luna2022"].fusions.values()
    named = dict(zip(experts.names, fusion.members, strict=True))
    config = SearchConfig(reproduce="luna2022", data="x")
    rows = {r.what: r for r in reproduced(config, SearchScope(single={}), experts, named)}

    scores = []
    columns = np.exp(experts.log_posteriors).transpose(1, 0, 2).reshape(240, -1)
    for fold in range(3):
        inside, outside = folds != fold, folds == fold
        low, high = columns[inside].min(0), columns[inside].max(0)
        fitted = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000)
        fitted.fit((columns[inside] - low) / (high - low), labels[inside])
        scores.append(fitted.score((columns[outside] - low) / (high - low), labels[outside]))
    fused = rows["fusion: wav2vec2 and action units"]
    assert fused.here == pytest.approx(np.mean(scores), abs=0.01)
    assert fused.published is None, "the paper's is of eight classes"
    assert fused.interval and fused.interval[0] < fused.here < fused.interval[1]
    alone = rows["video: MLP(80) on mean action units"].here
    assert alone == pytest.approx((logits[2].argmax(1) == labels).mean(), abs=1e-9)
    left = rows["video: logistic regression on mean action units"]
    assert (left.here, left.note) == (None, "not finished")

    lacking = Experts(table, names[:1], ("audio",), experts.log_posteriors[:1])
    rows = {r.what: r for r in reproduced(config, SearchScope(single={}), lacking, named)}
    assert rows[fused.what].here is None
    assert rows[fused.what].note.startswith("needs video: bi-LSTM")


def test_networks_of_the_papers_sizes_are_built() -> None:
    """S1's, whose parameters `tests/models` counts, with the settings that are given here."""
    from models import build_expert

    shape = ClipShape(num_classes=4, sample_rate_hz=16000, frames=20, frame_size=(60, 100))
    counts = {}
    for label, one in PAPERS["singh2020"].settings.items():
        plan = TrialConfig.of(one.architecture, one.settings, one.training)
        network = build_expert(
            plan.architecture, plan.settings, shape, dropout=plan.training.dropout
        )
        counts[label] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert counts["audio: CNN"] == 1_481_284
    assert counts["audio: CNN+RNN"] == 5_892_164
    assert counts["audio: CNN+LSTM"] == 23_338_052
