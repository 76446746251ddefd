"""Concordance, fusion of traces, post-processing, and honest scores of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensembles import EnsembleError
from ensembles.bank.posterior_bank import BankEntry, Experts, PosteriorBank
from ensembles.bank.trace_table import TraceTable
from ensembles.evaluation.assessment import assess
from ensembles.evaluation.bias_correction import Candidates
from ensembles.evaluation.cross_fitting import CrossFitter
from ensembles.evaluation.intervals import speaker_interval
from ensembles.evaluation.trace_assessment import (
    apply_by_fold,
    assess_traces,
    dimension_scores,
    recording_scores,
)
from ensembles.fusion.candidates import recipes_for
from ensembles.fusion.postprocessing import OneChain, PostProcessing, fit_postprocessing
from ensembles.fusion.rules import TraceMap, rule_from_json
from ensembles.fusion.trace_fusion import (
    Moments,
    TraceAverage,
    TraceGreedy,
    TraceRidge,
    TraceWeights,
)
from ensembles.metrics import CCC, Array, ccc, get_metric, rmse

RECORDINGS, STEPS, FOLDS = 6, 200, 3


def make_table(seed: int = 0, recordings: int = RECORDINGS) -> TraceTable:
    generator = np.random.default_rng(seed)
    time = np.arange(STEPS) / 25
    labels = []
    for _ in range(recordings):
        phase, pace = generator.uniform(0, 6, 2), generator.uniform(0.5, 1.5, 2)
        labels.append(0.4 * np.sin(pace * time[:, None] + phase) + generator.normal(0, 0.1, 2))
    return TraceTable(
        classes=("arousal", "valence"),
        step_seconds=0.04,
        recordings=tuple(f"P{n}" for n in range(recordings)),
        recording_speakers=tuple(f"P{n}" for n in range(recordings)),
        recording_folds=np.arange(recordings) % FOLDS,
        recording_of=np.repeat(np.arange(recordings), STEPS),
        steps=np.tile(np.arange(STEPS), recordings),
        labels=np.concatenate(labels),
    )


def make_experts(table: TraceTable, seed: int = 1) -> Experts:
    """Two good audio experts (arousal) and video ones (valence), and a useless one of each."""
    generator = np.random.default_rng(seed)
    traces = []
    for good in ((0.3, 1.0), (0.35, 1.2), (1.0, 0.3), (1.2, 0.35), (9.0, 9.0)):
        noise = generator.normal(size=table.labels.shape) * 0.3 * np.asarray(good)
        traces.append(0.6 * table.labels + 0.2 + noise)
    names = ("audio-0000", "audio-0001", "video-0000", "video-0001", "video-0002")
    return Experts(table, names, tuple(n.partition("-")[0] for n in names), np.stack(traces))


def test_concordance_by_hand() -> None:
    gold, said = np.asarray([0.0, 1.0, 2.0]), np.asarray([1.0, 2.0, 3.0])
    # Covariance 2/3, variances 2/3 each, means 1 apart: 4/3 over 4/3 + 1.
    assert ccc(gold, said) == pytest.approx((4 / 3) / (4 / 3 + 1))
    assert ccc(gold, gold) == pytest.approx(1.0)
    assert ccc(gold, -gold + 2) == pytest.approx(-1.0)
    assert rmse(gold, said) == pytest.approx(1.0)


def test_traces_that_do_not_move_agree_in_nothing() -> None:
    still = np.full(5, 0.3)
    assert ccc(still, still) == 0.0
    assert ccc(np.arange(5.0), still) == 0.0


def test_the_score_is_of_joined_recordings_not_the_mean_of_each() -> None:
    """One that knows each recording's level alone is worth much joined, and nothing each."""
    table = make_table()
    levels = np.stack([table.labels[s:e].mean(axis=0) for s, e in table.spans])[table.recording_of]
    found = dimension_scores(table, levels)["arousal"]
    assert found["ccc"] > 0.02
    assert found["ccc_recording_mean"] == pytest.approx(0.0, abs=1e-9)
    assert found["ccc"] == pytest.approx(ccc(table.labels[:, 0], levels[:, 0]))
    assert set(recording_scores(table, levels)) == set(table.recordings)


def test_concordance_is_shown_as_it_is_and_shares_in_percent() -> None:
    assert tuple(get_metric(name).format(0.5) for name in (CCC, "accuracy", "log_loss")) == (
        "0.500",
        "50.0",
        "0.500",
    )


def test_moments_give_the_concordance_of_any_combination() -> None:
    generator = np.random.default_rng(0)
    columns, target = generator.normal(size=(50, 3)), generator.normal(size=50)
    weights = np.asarray([0.2, -0.5, 1.3])
    moments = Moments.of(columns, target)
    assert float(moments.ccc(weights, 0.4)) == pytest.approx(ccc(target, columns @ weights + 0.4))
    both = moments.ccc(np.stack([weights, weights / 2]))
    assert both[1] == pytest.approx(ccc(target, columns @ weights / 2))


@pytest.mark.parametrize("build", [TraceAverage, TraceWeights, TraceGreedy, TraceRidge])
def test_one_perfect_expert_is_left_as_it_is(build: type[TraceAverage]) -> None:
    table = make_table()
    fitted = build().fit(table.labels[None], table.labels, table.folds)
    np.testing.assert_allclose(fitted.rule().apply(table.labels[None]), table.labels, atol=2e-3)


@pytest.mark.parametrize("build", [TraceWeights, TraceGreedy])
def test_shares_are_none_negative_and_together_one(build: type[TraceAverage]) -> None:
    experts = make_experts(make_table())
    rule = build().fit(experts.log_posteriors, experts.table.labels, experts.table.folds).rule()
    own = np.stack([rule.weights[d, :, d] for d in range(2)])
    np.testing.assert_allclose(own.sum(axis=1), 1.0)
    assert (own >= 0).all()
    assert own[:, 4].max() < 0.05, "the useless one weighs next to nothing"
    assert own[0, :2].sum() > own[0, 2:].sum(), "arousal is heard"
    assert own[1, 2:4].sum() > own[1, :2].sum(), "valence is seen"
    assert (rule.weights[0, :, 1] == 0).all(), "late fusion does not mix dimensions"


@pytest.mark.parametrize("build", [TraceWeights, TraceGreedy, TraceRidge])
def test_what_is_fitted_beats_each_expert_where_it_was_fitted(build: type[TraceAverage]) -> None:
    experts = make_experts(make_table())
    gold = experts.table.labels
    fitted = build().fit(experts.log_posteriors, gold, experts.table.folds)
    alone = max(get_metric(CCC).score(gold, one) for one in experts.log_posteriors)
    assert get_metric(CCC).score(gold, fitted.rule().apply(experts.log_posteriors)) > alone


def test_ridge_undoes_scale_and_offset_and_the_order_of_experts_does_not_matter() -> None:
    table = make_table()
    told_off = -3.0 * table.labels + 2.0
    fitted = TraceRidge().fit(told_off[None], table.labels, table.folds)
    np.testing.assert_allclose(fitted.rule().apply(told_off[None]), table.labels, atol=1e-2)
    experts = make_experts(table).log_posteriors
    one = TraceRidge().fit(experts, table.labels, table.folds).rule().apply(experts)
    turned = experts[::-1]
    other = TraceRidge().fit(turned, table.labels, table.folds).rule().apply(turned)
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_a_rule_comes_back_from_json_and_keeps_the_used_experts() -> None:
    weights = np.zeros((2, 3, 2))
    weights[0, 1, 0] = weights[1, 1, 1] = 0.5
    rule = TraceMap(weights, np.asarray([0.1, 0.2]))
    assert rule.used.tolist() == [1]
    again = rule_from_json(rule.of_used().to_json(), 1, 2)
    traces = np.random.default_rng(0).normal(size=(3, 4, 2))
    np.testing.assert_allclose(again.apply(traces[1:2]), rule.apply(traces))
    with pytest.raises(EnsembleError, match="do not fit 2 experts"):
        rule_from_json(rule.to_json(), 2, 2)


def test_a_bank_of_traces_keeps_its_table_and_entries(tmp_path: Path) -> None:
    table = make_table()
    bank = PosteriorBank.create(tmp_path / "bank", table)
    said = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    said[3] = np.nan
    bank.write(
        BankEntry(
            trial="audio-0000",
            modality="audio",
            architecture="x",
            percent=100,
            epoch=1,
            seed=0,
            logits=said,
        )
    )
    again = PosteriorBank.open(tmp_path / "bank")
    assert again.table.fingerprint == table.fingerprint
    experts = again.experts(again.read())
    assert not again.damaged
    np.testing.assert_allclose(experts.log_posteriors[0], np.delete(said, 3, axis=0))
    assert isinstance(experts.table, TraceTable)
    assert 3 not in experts.table.steps[:10]
    other = make_table(seed=5)
    with pytest.raises(EnsembleError, match="holds posteriors of other data"):
        PosteriorBank.create(tmp_path / "bank", other)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    PosteriorBank.create(tmp_path, make_table())
    (tmp_path / "recordings.npz").write_bytes(b"PK nothing")
    with pytest.raises(EnsembleError, match=r"recordings.npz' is damaged"):
        PosteriorBank.open(tmp_path)


def test_no_fold_takes_part_in_its_own_fusion() -> None:
    """What is said of a fold does not change when its gold standard does."""
    table = make_table()
    experts = make_experts(table)
    assessment, processed = assess_traces(experts)
    labels = table.labels.copy()
    rows = table.folds == 1
    labels[rows] = np.random.default_rng(9).normal(size=labels[rows].shape)
    changed = _with(table, labels)
    other, again = assess_traces(
        Experts(changed, experts.names, experts.modalities, experts.log_posteriors)
    )
    np.testing.assert_allclose(
        assessment.fused.log_posteriors[rows], other.fused.log_posteriors[rows]
    )
    assert processed.by_fold[1].to_json() == again.by_fold[1].to_json()
    assert processed.by_fold[0].to_json() != again.by_fold[0].to_json(), "the others see it"


def _with(table: TraceTable, labels: Array) -> TraceTable:
    return TraceTable(
        classes=table.classes,
        step_seconds=table.step_seconds,
        recordings=table.recordings,
        recording_speakers=table.recording_speakers,
        recording_folds=table.recording_folds,
        recording_of=table.recording_of,
        steps=table.steps,
        labels=labels,
    )


def test_every_recipe_is_cross_fitted_and_ridge_is_among_them() -> None:
    experts = make_experts(make_table())
    names = [recipe.name for recipe in recipes_for(experts, CCC)]
    assert {"best audio", "best video", "a+v: ridge", "a+v: weighted average", "greedy"} <= set(
        names
    )
    assessment = assess(experts, CCC)
    fitter = CrossFitter(experts, CCC)
    ridge = next(r for r in recipes_for(experts, CCC) if r.name == "a+v: ridge")
    row = assessment.row("a+v: ridge")
    assert row is not None
    np.testing.assert_allclose(row.log_posteriors, fitter.honest(ridge))
    assert row.honest_score == pytest.approx(
        get_metric(CCC).fold_mean(experts.table.labels, row.log_posteriors, experts.table.folds)
    )
    best = assessment.row("best audio")
    assert best is not None
    assert assessment.fused.honest_score > best.honest_score


def test_the_correction_counts_the_same_concordance_from_sums() -> None:
    table = make_table(recordings=12)
    experts = make_experts(table)
    candidates = Candidates(CCC, table)
    candidates.add(experts.log_posteriors)
    expected = [
        get_metric(CCC).fold_mean(table.labels, one, table.folds) for one in experts.log_posteriors
    ]
    np.testing.assert_allclose(candidates.scores(), expected)
    corrected = candidates.corrected(draws=50)
    assert corrected is not None
    assert corrected.low < corrected.score < max(expected) + 0.05


def test_the_interval_is_over_speakers() -> None:
    few = make_table()
    said = make_experts(few).log_posteriors[0]
    found = speaker_interval(few, CCC, said)
    assert found.method == "jackknife over 6 speakers"
    middle = get_metric(CCC).fold_mean(few.labels, said, few.folds)
    assert found.low < middle < found.high
    without = []
    for speaker in few.recordings:
        rows = np.asarray(few.speakers) != speaker
        without.append(get_metric(CCC).fold_mean(few.labels[rows], said[rows], few.folds[rows]))
    error = np.sqrt(5 / 6 * np.sum((np.asarray(without) - np.mean(without)) ** 2))
    assert (found.high - found.low) / 2 == pytest.approx(2.5706 * error, rel=1e-3)
    many = make_table(recordings=12)
    found = speaker_interval(many, CCC, make_experts(many).log_posteriors[0])
    assert found.method == "bootstrap over 12 speakers"
    middle = get_metric(CCC).fold_mean(
        many.labels, make_experts(many).log_posteriors[0], many.folds
    )
    assert found.low < middle < found.high


SPANS = [(0, 60), (60, 120)]


def _waves() -> Array:
    return np.sin(np.arange(120) / 9.0) + np.repeat([0.0, 0.5], 60)


def test_post_processing_finds_the_delay_scale_and_offset_that_were_planted() -> None:
    gold = _waves()
    late = np.concatenate(
        [np.repeat(gold[s], 10).tolist() + gold[s : e - 10].tolist() for s, e in SPANS]
    )
    said = 0.3 * late - 1.0
    chain = fit_postprocessing(said[:, None], gold[:, None], SPANS, 0.04)
    one = chain.chains[0]
    assert one.shift_steps == -10
    assert {"centre", "scale", "shift"} <= set(one.kept)
    assert ccc(gold, chain.apply(said[:, None], SPANS)[:, 0]) > 0.9
    assert set(chain.gains[0]) == set(one.kept)


def test_a_step_that_does_not_help_is_not_kept() -> None:
    gold = _waves()
    chain = fit_postprocessing(gold[:, None], gold[:, None], SPANS, 0.04)
    assert chain.chains == (OneChain(),)
    assert chain.chains[0].kept == ()
    np.testing.assert_array_equal(chain.apply(gold[:, None], SPANS)[:, 0], gold)


def test_the_median_takes_away_spikes_and_no_recording_touches_the_next() -> None:
    trace = np.zeros(20)
    trace[[3, 9]] = 5.0
    trace[10:] = 7.0
    out = OneChain(median_steps=5).apply(trace, [(0, 10), (10, 20)])
    assert out.tolist() == [0.0] * 10 + [7.0] * 10
    moved = OneChain(shift_steps=3).apply(np.arange(20.0), [(0, 10), (10, 20)])
    assert moved.tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 10, 10, 10, 10, 11, 12, 13, 14, 15, 16]


def test_numbers_of_whole_clips_are_neither_filtered_nor_shifted() -> None:
    gold = np.random.default_rng(0).normal(size=(40, 1))
    chain = fit_postprocessing(0.5 * gold + 1, gold, [(0, 20), (20, 40)], 0.0)
    assert chain.chains[0].kept == ("centre", "scale")


def test_a_chain_comes_back_from_json_and_a_damaged_one_is_refused() -> None:
    chain = PostProcessing((OneChain(5, 0.1, 0.2, 1.5, -3),), ({"median": 0.1},))
    assert PostProcessing.from_json(chain.to_json(), 1) == chain
    with pytest.raises(EnsembleError, match="does not fit 2 dimensions"):
        PostProcessing.from_json(chain.to_json(), 2)
    broken = chain.to_json()
    broken["chains"][0]["stretch"] = float("nan")
    with pytest.raises(EnsembleError, match="Damaged post-processing"):
        PostProcessing.from_json(broken, 1)


def test_the_headline_is_post_processed_and_says_what_it_was_before() -> None:
    table = make_table()
    assessment, processed = assess_traces(make_experts(table))
    assert processed.before.name == "fused"
    assert len(processed.by_fold) == FOLDS
    again = apply_by_fold(make_experts(table), processed.before, processed.by_fold)
    np.testing.assert_array_equal(again.log_posteriors, assessment.fused.log_posteriors)
    assert assessment.fused.honest_score >= processed.before.honest_score - 0.05


def test_two_folds_are_enough() -> None:
    table = make_table(recordings=4)
    two = TraceTable(
        classes=table.classes,
        step_seconds=table.step_seconds,
        recordings=table.recordings,
        recording_speakers=table.recording_speakers,
        recording_folds=np.asarray([0, 1, 0, 1]),
        recording_of=table.recording_of,
        steps=table.steps,
        labels=table.labels,
    )
    assessment, processed = assess_traces(make_experts(two))
    assert len(processed.by_fold) == 2
    assert np.isfinite(assessment.fused.log_posteriors).all()
