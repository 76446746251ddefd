"""Speaker enrolment: which clips enrol, what is taken off whom, and who is scored."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from datasets.protocols.split import make_folds
from datasets.sharding.clip_cache import open_cache
from datasets.sharding.index import ShardIndex
from datasets.storage.synced_folder import KeptFolder
from ensembles.bank.posterior_bank import PosteriorBank
from ensembles.bank.training_variant import Variant
from ensembles.evaluation.assessment import Assessment, Scored, scored
from models import Expert, build_expert
from search.config import ConfigError, SearchConfig
from search.data.bank_tables import clip_table
from search.data.corpus import _check_enrolment, load_corpus
from search.data.front_end_cache import enrolment_order
from search.data.training_data import TrainingData
from search.execution.ray_session import RaySession
from search.execution.trial_process import train
from search.monitoring.interrupt import Interrupt
from search.persistence.run_folder import RunFolder
from search.persistence.run_record import RunRecord
from search.space.scope import scope_for
from search.stages.enrolment import score_enrolment
from search.stages.session import Session
from search.stages.task import task_of
from search.training.cross_validation import LockstepTrial
from search.training.fold_builder import build_fold
from search.trial_config import TrialConfig
from search.trial_spec import RunContext, TrialSpec
from search.tuning.searcher import ModalitySearcher
from search.tuning.study import open_journal
from tests.search.here import broken
from tests.specs import NO_CORPUS, context_of, spec_of

NOBODY_MISSING = np.zeros(24, bool)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def three_folds(tiny_index: ShardIndex, cache_folder: Path) -> TrainingData:
    """The tiny corpus in folds of one speaker each, and a test speaker in none."""
    folds = make_folds(tiny_index, "speaker-kfold:3", ["speaker_03"])
    return TrainingData(open_cache(tiny_index, cache_folder), folds)


@pytest.fixture()
def context(three_folds: TrainingData, cache_folder: Path, tmp_path: Path) -> RunContext:
    """A trial's context, with a run's folder to write into."""
    PosteriorBank.create(tmp_path / "bank", clip_table(three_folds))
    (tmp_path / "weights").mkdir()
    index = three_folds.cache.index
    corpus = replace(
        NO_CORPUS,
        place=index.root,
        checksum=index.checksum,
        protocol=three_folds.folds.protocol,
        test_speakers=("speaker_03",),
        folds=three_folds.folds.fingerprint,
        cache_folder=str(cache_folder),
        cache_gb=16.0,
    )
    return context_of(tmp_path, corpus, workers_per_trial=2, runner="train")


def plan(name: str, **training: Any) -> TrialConfig:
    return TrialConfig.of(name, {}, {"epochs": 2, **training})


def expert(name: str, data: TrainingData) -> Expert:
    return build_expert(name, plan(name).settings, data.shape)


def order_of(data: TrainingData) -> dict[str, NDArray[np.int64]]:
    return enrolment_order(data.cache.index, data.cache.missing)


def speakers(data: TrainingData) -> NDArray[Any]:
    return np.asarray([entry.speaker for entry in data.cache.index.clips])


def less_means(
    data: TrainingData, items: list[NDArray[Any]], rows: NDArray[np.int64], clips: int | None
) -> list[NDArray[Any]]:
    """Each row's (n, F) frames less the mean frame of the clips that enrol its speaker."""
    order = order_of(data)
    who = speakers(data)[rows]
    means = [np.concatenate([items[r] for r in order[s][:clips]]).mean(axis=0) for s in who]
    return [items[row] - mean for row, mean in zip(rows, means, strict=True)]


def test_every_intact_clip_has_one_place_in_its_speakers_order(tiny_data: TrainingData) -> None:
    index, missing = tiny_data.cache.index, NOBODY_MISSING.copy()
    lost = order_of(tiny_data)["speaker_01"][0]
    missing[lost] = True
    order = enrolment_order(index, missing)
    assert lost not in order["speaker_01"]
    assert {speaker: len(rows) for speaker, rows in order.items()} == {
        "speaker_00": 6, "speaker_01": 5, "speaker_02": 6, "speaker_03": 6
    }  # fmt: skip
    for speaker, rows in order.items():
        assert len(set(rows.tolist())) == len(rows)
        assert {index.clips[row].speaker for row in rows} == {speaker}


def test_the_order_is_drawn_once_and_knows_neither_labels_nor_where_a_clip_lies(
    tiny_data: TrainingData,
) -> None:
    index = tiny_data.cache.index

    def names(of: ShardIndex) -> dict[str, list[str]]:
        order = enrolment_order(of, NOBODY_MISSING)
        return {speaker: [of.clips[row].clip for row in order[speaker]] for speaker in order}

    first = names(index)
    assert names(index) == first
    turned = [replace(e, label=index.labels[row % 5]) for row, e in enumerate(index.clips)]
    assert [e.label for e in turned] != [e.label for e in index.clips]
    assert names(replace(index, clips=tuple(turned))) == first
    assert names(replace(index, clips=index.clips[::-1])) == first
    assert any(clips != sorted(clips) for clips in first.values()), "drawn, not read off"


@pytest.mark.parametrize("name", ["action_units", "functionals"])
def test_vectors_lose_the_mean_of_the_clips_that_enrol(tiny_data: TrainingData, name: str) -> None:
    chosen = expert(name, tiny_data)
    (kind,) = chosen.kinds
    whole = tiny_data.front_ends.inputs(chosen, np.arange(24))[kind].numpy()
    rows = np.asarray([20, 3, 0, 11, 4])
    for clips in (2, 4, None, 2):  # a mean that was taken is kept, but not for another count
        fixed = tiny_data.front_ends.inputs(chosen, rows)
        found = tiny_data.front_ends.without_speaker_means(chosen, fixed, rows, clips)
        expected = less_means(tiny_data, list(whole[:, None]), rows, clips)
        np.testing.assert_allclose(found[kind].numpy()[:, None], expected, rtol=1e-5, atol=1e-4)
        assert (fixed[kind].numpy() == whole[rows]).all(), "what was given stays as it was"


def test_sequences_lose_the_mean_frame_and_stay_zero_behind_their_end(
    tiny_data: TrainingData,
) -> None:
    chosen = expert("logmel_resnet", tiny_data)
    whole = tiny_data.front_ends.inputs(chosen, np.arange(24))
    x, lengths = whole["audio"].numpy(), whole["audio_lengths"].numpy()
    items = [clip[:length] for clip, length in zip(x, lengths, strict=True)]
    rows = np.asarray([20, 3, 0, 11, 4])
    for clips in (2, 4, None):
        fixed = tiny_data.front_ends.inputs(chosen, rows)
        found = tiny_data.front_ends.without_speaker_means(chosen, fixed, rows, clips)
        assert (found["audio_lengths"].numpy() == lengths[rows]).all()
        assert len(set(lengths[rows])) > 1, "something is padded"
        expected = less_means(tiny_data, items, rows, clips)
        for clip, item in zip(found["audio"].numpy(), expected, strict=True):
            np.testing.assert_allclose(clip[: len(item)], item, atol=1e-4)
            assert (clip[len(item) :] == 0).all()


def test_pictures_are_left_as_they_are(tiny_data: TrainingData) -> None:
    chosen = expert("frame_cnn", tiny_data)
    rows = np.asarray([5, 6])
    fixed = tiny_data.front_ends.inputs(chosen, rows)
    found = tiny_data.front_ends.without_speaker_means(chosen, fixed, rows, 2)
    assert (found["video"] == tiny_data.front_ends.inputs(chosen, rows)["video"]).all()


@pytest.mark.parametrize("name", ["action_units", "functionals"])
def test_training_speakers_lose_the_mean_of_all_their_clips_and_scored_ones_that_of_n(
    tiny_data: TrainingData, name: str
) -> None:
    chosen = plan(name, mixup=0.0, speed_perturbation=0.1)  # at their own speed nevertheless
    trainer = build_fold(chosen, tiny_data, 0, seed=0, by_speaker=True)
    (kind,) = trainer.expert.kinds
    whole = list(tiny_data.front_ends.inputs(trainer.expert, np.arange(24))[kind].numpy()[:, None])
    expected = np.concatenate(less_means(tiny_data, whole, tiny_data.folds.train_rows(0), None))
    seen: list[NDArray[Any]] = []
    encoder = trainer.expert.encoder(kind)
    encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy().copy()))
    trainer.step_epoch()
    found = np.concatenate(seen)
    found, expected = found[found[:, 0].argsort()], expected[expected[:, 0].argsort()]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    deviation, varies = expected.std(axis=0), expected.std(axis=0) > 1e-3
    scale = encoder.scale.deviation.numpy()  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(scale[varies], deviation[varies], rtol=1e-3)

    rows = tiny_data.folds.test_rows(0)
    for clips in (2, 4):
        seen.clear()
        trainer.predict(rows, enrolled=clips)
        expected = np.concatenate(less_means(tiny_data, whole, rows, clips))
        np.testing.assert_allclose(np.concatenate(seen), expected, rtol=1e-5, atol=1e-4)


Altered = Callable[..., NDArray[np.float32]]


@pytest.fixture()
def predicted(tiny_data: TrainingData, cache_folder: Path) -> Altered:
    """Fold 0's held-out logits, enrolled by 2, where something was added to some clips."""

    def predict(
        rows: NDArray[np.int64] | list[int], added: float, *, by_speaker: bool = True
    ) -> NDArray[np.float32]:
        cache = open_cache(tiny_data.cache.index, cache_folder)
        held_out = tiny_data.folds.test_rows(0)
        file = cache._files["features"]
        file.data = np.array(file.data)
        file.data[rows] += np.float32(added)
        if added:
            cache.targets[held_out] = (cache.targets[held_out] + 1) % 6  # nor do labels matter
        data = TrainingData(cache, tiny_data.folds)
        trainer = build_fold(plan("action_units"), data, 0, seed=0, by_speaker=by_speaker)
        trainer.step_epoch()
        return trainer.predict(held_out, enrolled=2)

    return predict


def test_a_clip_that_enrols_nobody_moves_no_prediction_but_its_own(
    tiny_data: TrainingData, predicted: Altered
) -> None:
    held_out = tiny_data.folds.test_rows(0)
    speaker = str(speakers(tiny_data)[held_out[0]])
    mine = speakers(tiny_data)[held_out] == speaker
    assert 0 < mine.sum() < len(mine)
    order = order_of(tiny_data)[speaker]
    before = predicted([], 0.0)
    for place in (2, 5):
        moved = (predicted([order[place]], 1.0) != before).any(axis=1)
        assert held_out[moved].tolist() == [order[place]]
    for place in (0, 1):
        moved = (predicted([order[place]], 1.0) != before).any(axis=1)
        assert (moved == mine).all(), "an enrolling clip moves its speaker's, and no other's"


def test_what_all_clips_of_a_scored_speaker_share_is_taken_off(
    tiny_data: TrainingData, predicted: Altered
) -> None:
    speaker = str(speakers(tiny_data)[tiny_data.folds.test_rows(0)[0]])
    mine = order_of(tiny_data)[speaker]
    np.testing.assert_allclose(predicted(mine, 3.0), predicted([], 0.0), atol=1e-4)
    without = [predicted(rows, added, by_speaker=False) for rows, added in ((mine, 3.0), ([], 0.0))]
    assert np.abs(without[0] - without[1]).max() > 0.1


def test_an_enrolling_trial_leaves_its_counts_at_the_end_and_nothing_else(
    three_folds: TrainingData, context: RunContext
) -> None:
    chosen = TrialConfig.of("action_units", {}, {"epochs": 8})
    adapted = Variant("adapted")
    spec = spec_of(
        "video-0000", chosen, context, variant=adapted, keep_weights=False, enrolment=(2, 4)
    )
    run = Path(context.run)
    bank = PosteriorBank.open(run / "bank")
    percents = []
    for report in train(spec):
        percents.append(report["percent"])
        found = {(entry.name, entry.percent): entry.logits for entry in bank.read()}
        done = {("video-0000+enrol2", 100), ("video-0000+enrol4", 100)}
        assert set(found) == (done if report["percent"] == 100 else set())
    assert percents == [25, 50, 75, 100]
    assert list((run / "weights").iterdir()) == []
    assert [path.name for path in (run / "logs").iterdir()] == ["video-0000+enrolled.log"]

    trial = LockstepTrial(chosen, three_folds, seed=0, by_speaker=True)
    assert len(list(trial.run())) == 4
    folds = three_folds.folds
    for count in (2, 4):
        logits = found[f"video-0000+enrol{count}", 100]
        for trainer in trial.trainers:
            rows = folds.test_rows(trainer.fold)
            assert (logits[rows] == trainer.predict(rows, count)).all()
        assert np.isnan(logits[folds.unseen_rows]).all(), "test speakers are in no fold"
        assert (logits[folds.fold_of_clip >= 0] != trial.out_of_fold()[:18]).any()
    assert (found["video-0000+enrol2", 100] != found["video-0000+enrol4", 100])[:18].any()


AVERAGE = ("a+v: average", ("audio-0000", "video-0000"))
PER_FOLD = (("best video", ("video-0000",)), AVERAGE, AVERAGE)


@dataclass(frozen=True)
class Searched:
    """What a search of three trials leaves, of which two made the headline."""

    session: Session
    assessment: Assessment
    screen: io.StringIO

    @property
    def run(self) -> Path:
        return self.session.run.path

    def score(self, *counts: int) -> dict[int, Scored]:
        return score_enrolment(self.session, self.assessment, counts)

    def posteriors(self, name: str) -> NDArray[np.float64]:
        """(N, K) of all clips, by hand."""
        (entry,) = (e for e in self.session.bank.read() if (e.name, e.percent) == (name, 100))
        powers = np.exp(entry.logits.astype(np.float64))
        values: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return values


@pytest.fixture()
def searched(three_folds: TrainingData, context: RunContext) -> Searched:
    run = RunFolder(KeptFolder(Path(context.run)), SearchConfig(), resumed=False)
    search = ModalitySearcher(
        scope_for(three_folds.shape, ("functionals", "action_units"), epochs_scale=0.1),
        open_journal(run.journal),
        seed=0,
        trials=3,
        deadline=math.inf,
    )
    for trial in ("0", "1", "2"):
        config = search.suggest(trial)
        assert isinstance(config, dict)
        for report in train(TrialSpec(**config, context=context)):
            search.report_rung(trial, report["percent"], report["score"])
        search.on_trial_complete(trial, dict(report))
    assert search.finished() == {"audio-0000", "audio-0001", "video-0000"}
    bank = PosteriorBank.open(run.path / "bank")
    experts = bank.experts(entry for entry in bank.read() if entry.percent == 100)
    names = ("audio-0000", "video-0000")
    fused = scored(
        "fused", experts.table, "accuracy", experts.log_posteriors[0], None, names, PER_FOLD
    )
    assessment = Assessment("accuracy", experts.table, (), fused, AVERAGE[0])
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    session = Session(
        run=run,
        data=three_folds,
        task=task_of(three_folds),
        record=cast(RunRecord, None),
        bank=bank,
        search=search,
        context=context,
        screen=console,
        interrupt=Interrupt(),
        ray=cast(RaySession, SimpleNamespace(start=lambda: None, workers=1)),
        started=0.0,
    )
    return Searched(session, assessment, screen)


@dataclass
class Here:
    """Trains what is asked for in this process, without Ray; `breaking` fails."""

    specs: list[TrialSpec]
    breaking: str = ""

    def __call__(
        self,
        specs: list[TrialSpec],
        run: RunFolder,
        *,
        workers: int,
        on_done: Callable[[str, str | None], None],
        interrupt: Interrupt,
    ) -> None:
        for spec in specs:
            *_, last = train(broken(spec) if spec.name == self.breaking else spec)
            on_done(spec.name, last.get("failed"))
        self.specs += specs

    def trained(self) -> list[str]:
        """Names since the last call."""
        names = [spec.name for spec in self.specs]
        self.specs.clear()
        return names


@pytest.fixture()
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    ours = Here([])
    monkeypatch.setattr("search.execution.tuner.run_seeds", ours)
    return ours


def test_every_count_is_scored_on_the_same_clips_which_enrol_nobody(
    searched: Searched, here: Here
) -> None:
    rows = searched.score(2, 4)
    assert list(rows) == [0, 2, 4]
    order = order_of(searched.session.data)
    enrolling = {row for speaker in order for row in order[speaker][:4].tolist()}
    folds = searched.session.data.folds.fold_of_clip
    left = [row for row in range(24) if row not in enrolling and folds[row] >= 0]
    assert len(left) == 6
    labels = searched.session.data.cache.targets
    for count, row in rows.items():
        suffix = f"+enrol{count}" if count else ""
        audio, video = (searched.posteriors(f"{n}-0000{suffix}") for n in ("audio", "video"))
        fused = np.where(folds[:, None] == 0, video, (audio + video) / 2)
        np.testing.assert_allclose(np.exp(row.log_posteriors), fused[left], atol=1e-6)
        hits = fused.argmax(axis=1) == labels
        by_fold = [hits[[r for r in left if folds[r] == fold]].mean() for fold in range(3)]
        assert row.fold_scores == pytest.approx(by_fold)
        assert row.honest_score == pytest.approx(np.mean(by_fold))
        assert row.per_fold == PER_FOLD, "chosen without enrolment"
    values = [row.log_posteriors for row in rows.values()]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not np.allclose(values[one], values[other], atol=1e-4)


def test_only_the_headlines_experts_are_trained_each_once_and_on_one_worker(
    searched: Searched, here: Here
) -> None:
    before = {(entry.name, entry.percent) for entry in searched.session.bank.read()}
    kept = sorted(path.name for path in (searched.run / "weights").iterdir())
    searched.score(2, 4)
    for spec in here.specs:
        assert spec.enrolment == (2, 4)
        assert spec.context == replace(searched.session.context, workers_per_trial=1)
        frozen = searched.session.search.all_trials()[spec.trial]
        assert spec.plan.architecture == frozen.params["architecture"]
    assert here.trained() == ["audio-0000+enrolled", "video-0000+enrolled"]
    after = {(entry.name, entry.percent) for entry in searched.session.bank.read()}
    assert after - before == {
        (f"{name}-0000+enrol{count}", 100) for name in ("audio", "video") for count in (2, 4)
    }
    assert sorted(p.name for p in (searched.run / "weights").iterdir()) == kept
    assert searched.session.context.workers_per_trial == 2


def test_only_what_the_bank_lacks_is_trained_again(searched: Searched, here: Here) -> None:
    first = searched.score(2, 4)
    assert len(here.trained()) == 2
    again = searched.score(2, 4)
    assert here.trained() == []
    (searched.session.bank.folder / "video-0000+enrol4@100.npz").unlink()
    third = searched.score(2, 4)
    assert here.trained() == ["video-0000+enrolled"]
    for count, row in first.items():
        assert (again[count].log_posteriors == row.log_posteriors).all()
        assert (third[count].log_posteriors == row.log_posteriors).all()
    more = searched.score(2, 4, 5)
    assert here.trained() == ["audio-0000+enrolled", "video-0000+enrolled"]
    assert {len(row.log_posteriors) for row in more.values()} == {3}, "one clip a speaker is left"


def test_a_failed_training_leaves_no_rows_and_is_tried_again(
    searched: Searched, here: Here
) -> None:
    here.breaking = "audio-0000+enrolled"
    assert searched.score(2, 4) == {}
    assert len(here.trained()) == 2, "the others are trained nevertheless"
    assert "audio-0000+enrolled failed: ModelError: " in searched.screen.getvalue()
    here.breaking = ""
    assert list(searched.score(2, 4)) == [0, 2, 4]
    assert here.trained() == ["audio-0000+enrolled"]


def test_a_count_that_leaves_a_speaker_nothing_to_score_is_refused(
    tiny_shards: Path, cache_folder: Path
) -> None:
    config = SearchConfig(data=str(tiny_shards), enrolment="6,2", cache_dir=str(cache_folder))
    message = r"enrolment by 6 clips leaves none to score: speaker 'speaker_0\d' has 6"
    with pytest.raises(ConfigError, match=message):
        load_corpus(config, Console(quiet=True))
    with pytest.raises(ConfigError, match=r"enrolment by 5 clips leaves no '\w+' to score"):
        load_corpus(replace(config, enrolment="5,2"), Console(quiet=True))
    load_corpus(replace(config, enrolment="2,1"), Console(quiet=True))
    load_corpus(replace(config, enrolment=None), Console(quiet=True))


def test_a_corrupt_clip_is_none_that_could_be_scored(
    tiny_index: ShardIndex, cache_folder: Path
) -> None:
    cache = open_cache(tiny_index, cache_folder)
    cache.missing = NOBODY_MISSING.copy()
    cache.missing[[e.speaker for e in tiny_index.clips].index("speaker_02")] = True
    with pytest.raises(ConfigError, match=r"by 5 clips .*: speaker 'speaker_02' has 5"):
        _check_enrolment(SearchConfig(enrolment="5"), cache)
    _check_enrolment(SearchConfig(enrolment="2"), cache)
