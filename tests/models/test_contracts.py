"""What holds for every registered architecture, in the settings that change its structure."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import ClipShape, Expert, architectures, build_expert, get_architecture
from models.build import arrange_memory
from models.registry import Architecture, ModelError
from tests.small import CASES, PAIRS, SMALL, case_name, early, every_network


def parametrised(cases: list[tuple[str, dict[str, Any]]]) -> Any:
    return pytest.mark.parametrize(
        ("name", "settings"), [pytest.param(*case, id=case_name(*case)) for case in cases]
    )


every_architecture = parametrised(CASES)
every_single = parametrised([c for c in CASES if get_architecture(c[0]).modality != "early"])
# Where both parts are tiny, the join dominates, which the estimate leaves out: not listed.
every_default = parametrised(
    [case for case in every_network(small=False) if case[1] != early(*PAIRS[0], small=False)]
)
every_entry = pytest.mark.parametrize("entry", architectures(), ids=lambda entry: entry.name)


def build(
    name: str, settings: Mapping[str, Any], shape: ClipShape, *, seed: int = 0, dropout: float = 0.0
) -> Expert:
    """A network in evaluation mode, its weights from a seed."""
    torch.manual_seed(seed)
    return build_expert(name, settings, shape, dropout=dropout).eval()


def shared(name: str, settings: Mapping[str, Any], shape: ClipShape) -> Expert:
    """The network of seed 0, built once for all the tests that only evaluate it."""
    return _shared(name, json.dumps(settings), shape)


@cache
def _shared(name: str, settings: str, shape: ClipShape) -> Expert:
    return build(name, json.loads(settings), shape)


def fit_statistics(expert: Expert, batch: Mapping[str, Tensor]) -> None:
    """What the trainer does before the first epoch."""
    fixed = expert.preprocess(batch)
    for kind in expert.kinds:
        if expert.encoder(kind).counts_statistics:
            expert.encoder(kind).fit_statistics(fixed[kind], fixed[f"{kind}_lengths"])


def steps(expert: Expert, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the only encoder makes of clips over time."""
    (kind,) = expert.kinds
    fixed = expert.preprocess(batch)
    return expert.encoder(kind).steps(fixed[kind], fixed[f"{kind}_lengths"])


def over_time(expert: Expert) -> bool:
    """Whether it is a fusion that reads steps instead of vectors."""
    return expert.fusion is not None and expert.fusion.over_time


def rows(batch: Mapping[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Some clips of a batch, in some order."""
    return {name: x[order] for name, x in batch.items()}


def alone(batch: Mapping[str, Tensor], clip: int) -> dict[str, Tensor]:
    """One clip of a batch without any padding."""
    single = rows(batch, [clip])
    for kind in ("audio", "video", "feature_sequence"):
        single[kind] = single[kind][:, : int(single[f"{kind}_lengths"])]
    return single


# 10 ms a frame: these lengths leave every remainder that the poolings and strides can meet.
LENGTHS = [12000, 8000, 8160, 8320, 8480, 8640, 8800, 8960, 9120, 4321]
FRAMES = [12, 1, 2, 3, 5, 7, 8, 9, 10, 11]


@every_architecture
def test_a_clip_gives_the_same_logits_alone_in_a_padded_batch_and_in_any_order(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    expert = shared(name, settings, shape)
    # A front end takes as many frames of every clip: fewer lengths have all that differs there.
    count = 5 if set(expert.kinds) <= {"video", "features"} else len(LENGTHS)
    batch = make_clips(LENGTHS[:count], FRAMES[:count])
    order = [2, 0, 3, 1]
    with torch.no_grad():
        together = expert(batch)
        apart = torch.cat([expert(alone(batch, clip)) for clip in range(count)])
        reordered = expert(rows(batch, order))
    assert together.shape == (count, 3), "a row for each clip, a column for each class"
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reordered, together[order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, together[0], atol=1e-4), "all clips give the same"


@every_single
def test_steps_end_with_the_clip_and_do_not_depend_on_padding(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    expert = shared(name, settings, shape)
    (kind,) = expert.kinds
    batch = make_clips([12000, 8000, 8480, 8640, 4321], [12, 1, 2, 7, 9])
    with torch.no_grad():
        together, lengths = steps(expert, batch)
        apart = [steps(expert, alone(batch, clip)) for clip in range(5)]
    assert together.shape[::2] == (5, expert.encoder(kind).steps_dim)
    assert lengths.dtype == torch.int64
    assert 1 <= int(lengths.min()) <= int(lengths.max()) <= together.shape[1]
    tolerance = 1e-5 * max(1.0, float(together.abs().max()))  # steps have any scale
    for clip, (single, own) in enumerate(apart):
        assert int(own) == int(lengths[clip])
        torch.testing.assert_close(
            together[clip, : int(own)], single[0, : int(own)], atol=tolerance, rtol=1e-5
        )
        assert not together[clip, int(own) :].any(), f"clip {clip} goes on behind its end"
        assert not single[0, int(own) :].any(), f"clip {clip} alone goes on behind its end"


@every_architecture
def test_every_parameter_gets_a_finite_gradient(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    batch = make_clips([9000, 6000, 8000, 7000, 9000, 5000], [12, 4, 8, 6, 3, 9])
    expert = build(name, settings, shape, dropout=0.2)
    fit_statistics(expert, batch)
    torch.manual_seed(1)
    logits = expert.train()(batch)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    without = []
    for parameter_name, parameter in expert.named_parameters():
        if over_time(expert) and parameter_name.startswith("encoders.") and parameter.grad is None:
            continue  # it reads steps, in front of a part's own pooling
        assert parameter.grad is not None, f"{parameter_name} takes no part"
        assert torch.isfinite(parameter.grad).all(), parameter_name
        if not float(parameter.grad.abs().max()) > 1e-12:
            without.append(parameter_name)
    # A softmax ignores a shift of all its scores (of pooling, of a query over all keys); a single
    # step has no earlier state, and nothing to choose among; a spatial transformer begins at the
    # identity, whatever it sees.
    single = bool(settings.get("one_step")) or "functionals" in str(settings.get("audio"))
    idle = ("weight_hh", "pool.score", "query", "key", ".before.")
    expected = [
        n
        for n, _ in expert.named_parameters()
        if n.endswith(("pool.score.bias", "k_proj.bias"))
        or (single and any(part in n for part in idle))
        or (".localisation." in n and ".localisation.9." not in n)
    ]
    assert set(without) <= set(expected)


@every_architecture
def test_a_state_dict_carries_the_whole_network(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    batch = make_clips([9000, 6000, 8000], [12, 4, 8])
    expert = build(name, settings, shape)
    fit_statistics(expert, batch)
    expert.train()(batch)  # moves the statistics of batch normalisation
    expert.eval()
    other = build(name, settings, shape, seed=1)
    with torch.no_grad():
        expected = expert(batch)
        assert not torch.equal(other(batch), expected)
        other.load_state_dict(expert.state_dict())
        assert torch.equal(other(batch), expected)


@every_architecture
def test_the_same_seed_gives_the_same_weights_and_outputs(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    one = shared(name, settings, shape)
    same, other = (build(name, settings, shape, seed=seed) for seed in (0, 1))
    weights = [torch.cat([p.flatten() for p in e.parameters()]) for e in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    batch = make_clips([8000, 6000], [12, 5])
    with torch.no_grad():
        assert torch.equal(one(batch), same(batch))


@every_architecture
def test_training_mode_is_reproducible_from_a_seed(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    batch = make_clips([12000, 10000], [12, 5])
    expert = build(name, settings, shape, dropout=0.5).train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs.append(expert(batch))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@every_architecture
def test_very_short_long_and_silent_clips_give_finite_logits(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    expert = shared(name, settings, shape)
    silence = {name: torch.zeros_like(x) for name, x in make_clips([8000], [4]).items()}
    lengths = {"audio": 8000, "video": 4, "feature_sequence": 4}
    silence |= {f"{kind}_lengths": torch.tensor([count]) for kind, count in lengths.items()}
    with torch.no_grad():
        assert torch.isfinite(expert(silence)).all()
        for samples, frames in ((1, 1), (1600, 1), (96000, 150)):
            logits = expert(make_clips([samples], [frames]))
            assert torch.isfinite(logits).all(), f"{samples} samples, {frames} frames"


@every_architecture
def test_channels_last_weights_compute_the_same(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    batch = make_clips([8000, 6000], [12, 5])
    with torch.no_grad():
        expected = shared(name, settings, shape)(batch)
        found = arrange_memory(build(name, settings, shape))(batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@every_default
def test_the_known_good_default_builds_and_its_cost_is_what_is_counted(
    name: str, settings: dict[str, Any], shape: ClipShape, make_clips: Any
) -> None:
    entry = get_architecture(name)
    expert = build(name, settings, shape)
    fixed = expert.preprocess(make_clips([int(shape.seconds * shape.sample_rate_hz)]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expert.answer(fixed)
    counted = counter.get_total_flops() / 2
    estimate = entry.cost({**entry.default, **settings}, shape)
    assert counted > 0
    if any(isinstance(module, nn.LSTM) for module in expert.modules()):
        assert estimate >= counted  # the counter does not see inside an LSTM
    else:
        assert counted / 2 <= estimate <= counted * 2


@every_entry
def test_a_longer_clip_does_not_cost_less(entry: Architecture, shape: ClipShape) -> None:
    settings = early(*PAIRS[1]) if entry.modality == "early" else entry.default
    double = ClipShape(**{**vars(shape), "seconds": 2 * shape.seconds})
    assert 0 < entry.cost(settings, shape) <= entry.cost(settings, double)


@every_entry
def test_a_constructor_takes_its_defaults_and_refuses_an_unknown_setting_with_the_known_ones(
    entry: Architecture, shape: ClipShape
) -> None:
    entry.check(entry.default)
    known = [*entry.arguments, *entry.further_settings]
    message = f"Unknown setting 'colour' of '{entry.name}'. Known: {', '.join(known)}."
    with pytest.raises(ModelError, match=re.escape(message)):
        build_expert(entry.name, {"colour": 1}, shape)


def constructor(entry: Architecture) -> Any:
    """What takes an architecture's settings; classes may share a base class's."""
    return entry.build.__init__ if inspect.isclass(entry.build) else entry.build


def choices_of(entry: Architecture, shape: ClipShape) -> dict[str, set[Any]]:
    """Every setting that is true or false, or one of several words, with all its values."""
    choices: dict[str, set[Any]] = {}
    parts = early(*PAIRS[0]) if entry.modality == "early" else {}
    for setting, kind in get_type_hints(constructor(entry)).items():
        if kind is bool:
            choices[setting] = {False, True}
        elif kind is str:
            with pytest.raises(ModelError, match=f"Unknown {setting} 'other'.") as error:
                build_expert(entry.name, {**parts, setting: "other"}, shape)
            (known,) = re.findall(r"Known: (.*)\.", str(error.value))
            choices[setting] = set(known.split(", "))
    return choices


@every_entry
def test_every_choice_of_a_constructor_is_one_of_the_cases(
    entry: Architecture, shape: ClipShape
) -> None:
    usual = {
        name: parameter.default
        for name, parameter in inspect.signature(constructor(entry)).parameters.items()
    }
    cases = [
        {**usual, **get_architecture(name).default, **settings}
        for name, settings in CASES
        if constructor(get_architecture(name)) is constructor(entry)
    ]
    for setting, values in choices_of(entry, shape).items():
        assert {case[setting] for case in cases} == values, f"{setting}: see tests/small.py"


def test_settings_that_are_choices_are_found(shape: ClipShape) -> None:
    assert choices_of(get_architecture("resnet_lstm"), shape) == {
        "scaling": {"clip", "unit", "imagenet", "kinetics"},
        "bidirectional": {False, True},
        "pooling": {"attention", "mean"},
    }


@every_entry
def test_a_class_names_its_paper_or_says_why_there_is_none(entry: Architecture) -> None:
    built: Any = entry.build
    owners = built.__mro__ if inspect.isclass(built) else [built]
    texts = [o.__doc__ or "" for o in owners if o.__module__.startswith(built.__module__)]
    assert re.search(r"\(.*(19|20)\d\d|No paper", "\n".join(texts))
    assert re.search(r"[Dd]iffers from|No deviations|No paper", "\n".join(texts))


@pytest.mark.parametrize(
    "entry", [a for a in architectures() if a.modality != "early"], ids=lambda entry: entry.name
)
def test_declared_inputs_are_what_the_encoder_reads(
    entry: Architecture, shape: ClipShape, make_clips: Any
) -> None:
    expert = shared(entry.name, SMALL.get(entry.name, {}), shape)
    assert tuple(expert.kinds) == entry.inputs
    names = {*entry.inputs, *(f"{kind}_lengths" for kind in entry.inputs)}
    batch = {name: x for name, x in make_clips([8000]).items() if name in names}
    with torch.no_grad():
        assert expert(batch).shape == (1, 3)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_early_fusion_reads_what_its_parts_read(pair: tuple[str, str], shape: ClipShape) -> None:
    expert = shared("concatenation", early(*pair), shape)
    assert expert.kinds == [get_architecture(part).inputs[0] for part in pair]


@pytest.mark.parametrize(
    "entry", [a for a in architectures() if a.modality != "early"], ids=lambda entry: entry.name
)
def test_clips_that_lack_the_input_are_refused(entry: Architecture) -> None:
    with pytest.raises(ModelError, match=f"'{entry.name}' reads {entry.inputs[0]}"):
        build_expert(entry.name, {}, ClipShape(num_classes=3))


def test_early_fusion_names_the_part_that_lacks_its_input(shape: ClipShape) -> None:
    silent = ClipShape(**{**vars(shape), "sample_rate_hz": 0})
    with pytest.raises(ModelError, match="'logmel_resnet' reads audio"):
        build_expert("concatenation", early(*PAIRS[1]), silent)


def test_early_fusion_refuses_a_part_of_the_other_modality(shape: ClipShape) -> None:
    with pytest.raises(ModelError, match="video part must be an architecture of video, got 'func"):
        build_expert("concatenation", early("functionals", "functionals"), shape)


def test_an_unknown_setting_of_a_part_is_refused(shape: ClipShape) -> None:
    settings = early("functionals", "action_units")
    settings["audio"]["settings"] = {"colour": 1}
    with pytest.raises(ModelError, match="Unknown setting 'colour' of 'functionals'"):
        build_expert("concatenation", settings, shape)


def test_an_unknown_architecture_is_refused_with_the_known_ones(shape: ClipShape) -> None:
    known = ", ".join(entry.name for entry in architectures())
    with pytest.raises(ModelError, match=re.escape(f"Unknown architecture 'vgg'. Known: {known}.")):
        build_expert("vgg", {}, shape)


def test_every_modality_has_an_architecture() -> None:
    for modality in ("audio", "video", "early"):
        assert architectures(modality)
        assert {a.modality for a in architectures(modality)} == {modality}


def test_the_classifier_drops_out_only_in_training(shape: ClipShape, make_clips: Any) -> None:
    expert = build("action_units", {}, shape, dropout=0.5)
    batch = make_clips([100])
    with torch.no_grad():
        assert torch.equal(expert(batch), expert(batch))
        expert.train()
        assert not torch.equal(expert(batch), expert(batch))


@pytest.mark.parametrize("name", ["functionals", "action_units"])
def test_counted_statistics_scale_the_training_clips(
    name: str, shape: ClipShape, make_clips: Any
) -> None:
    expert = build(name, {"hidden_units": 0}, shape)
    batch = make_clips([8000] * 6)
    fit_statistics(expert, batch)
    fixed = expert.preprocess(batch)
    (kind,) = expert.kinds
    with torch.no_grad():
        vectors = expert.encoder(kind)(fixed[kind], fixed[f"{kind}_lengths"])
    varied = fixed[kind].std(dim=0, correction=0) > 1e-3
    assert int(varied.sum()) >= 5
    torch.testing.assert_close(
        vectors.mean(dim=0)[varied], torch.zeros(int(varied.sum())), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        vectors.std(dim=0, correction=0)[varied], torch.ones(int(varied.sum())), atol=1e-3, rtol=0
    )
