"""wav2vec 2.0, HuBERT and WavLM: what they compute, from the waveform to the head."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torchaudio

from models import ClipShape, build_expert, get_architecture
from models.audio.speech_transformer import Waveform, complete_config
from models.registry import ModelError
from tests.models.tiny_speech import NAMES, SHAPE, build, noise, ours, shake
from tests.small import SPEECH, SPEECH_LARGE


@pytest.mark.parametrize("wavlm", [False, True], ids=["wav2vec2", "wavlm"])
@pytest.mark.parametrize("config", [SPEECH, SPEECH_LARGE], ids=["base", "large"])
def test_every_layer_of_a_padded_clip_is_what_it_is_alone(
    config: dict[str, Any], wavlm: bool
) -> None:
    backbone = ours(config, wavlm=wavlm, frame_step=3)
    shake(backbone)
    x, lengths = noise(9000, 4321, 405, 700, 3)
    with torch.no_grad():
        together, steps = backbone(x, lengths)
        for clip, length in enumerate(lengths.tolist()):
            alone, (count,) = backbone(x[clip : clip + 1, :length], lengths[clip : clip + 1])
            assert int(count) == int(steps[clip])
            torch.testing.assert_close(
                together[clip, : int(count)], alone[0, : int(count)], atol=1e-4, rtol=1e-4
            )
            assert not together[clip, int(count) :].any()


def test_a_clip_shorter_than_the_receptive_field_is_followed_by_silence() -> None:
    backbone = ours(SPEECH, wavlm=False)
    assert backbone.receptive_field == 10 + 5 * (7 + 8 * 9) == 405
    x, _ = noise(405)
    x[:, 100:] = 0
    with torch.no_grad():
        short, steps = backbone(x[:, :100], torch.tensor([100]))
        padded, _ = backbone(x, torch.tensor([405]))
    assert int(steps) == 1
    torch.testing.assert_close(short[:, :1], padded[:, :1])


# By hand, base: convolutions 4 200 448, projection 395 008, positions 4 719 488, a normalisation
# 1 536, 12 layers of 7 087 872; WavLM 320·12 positions and 12·(64·8 + 8 + 12) gates more. Hugging
# Face's count is 768 more (a mask embedding). HuBERT's and wav2vec 2.0's papers: 95 M.
BASE = 4_200_448 + 395_008 + 4_719_488 + 1_536 + 12 * 7_087_872


@pytest.mark.parametrize(
    ("name", "expected"),
    [("wav2vec2", BASE), ("hubert", BASE), ("wavlm", BASE + 320 * 12 + 12 * 532)],
)
def test_the_base_models_are_as_large_as_the_papers_say(name: str, expected: int) -> None:
    with torch.device("meta"):
        backbone = ours({}, wavlm=name == "wavlm")
    assert sum(p.numel() for p in backbone.parameters()) == expected
    assert expected / 1e6 == pytest.approx(95, rel=0.01)


@pytest.mark.parametrize(
    ("name", "file", "millions"),
    # HuBERT's table 1 and WavLM's table 1; XLS-R's table 1 with its quantiser.
    [
        ("wav2vec2", "wav2vec2_fairseq_large_xlsr53.pth", 317),
        ("hubert", "hubert_fairseq_large_ll60k.pth", 317),
        ("hubert", "hubert_fairseq_xlarge_ll60k.pth", 964),
        ("wavlm", "wavlm_large.pth", 317),
        ("wavlm", "wavlm_base_plus.pth", 95),
        ("wav2vec2", "wav2vec2_xlsr_1b.pth", 965),
    ],
)
def test_the_published_files_are_as_large_as_the_papers_say(
    name: str, file: str, millions: float
) -> None:
    (checkpoint,) = [c for c in get_architecture(name).checkpoints if file in c.files]
    assert json.loads(json.dumps(checkpoint.settings)) == checkpoint.settings
    with torch.device("meta"):
        backbone = ours(checkpoint.settings["config"], wavlm=name == "wavlm")
    count = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


def test_the_base_models_see_25_ms_every_20_ms() -> None:
    with torch.device("meta"):
        backbone = ours({}, wavlm=False)
    assert backbone.receptive_field == 400  # 25 ms
    frames = torch.tensor([16_000, 48_000])
    for kernel, stride in backbone.shapes:
        frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
    assert frames.tolist() == [49, 149]  # the paper's 49 Hz


@pytest.mark.parametrize("name", NAMES)
def test_large_published_models_want_normalised_waveforms_and_base_ones_do_not(name: str) -> None:
    for checkpoint in get_architecture(name).checkpoints:
        if checkpoint.settings:
            large = checkpoint.settings["config"]["extractor_mode"] == "layer_norm"
            assert checkpoint.settings["normalise_waveform"] == large, checkpoint.files


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_as_torchaudio_does(rate: int) -> None:
    x, lengths = noise(3001, 2000)
    frontend = Waveform(sample_rate_hz=rate, normalise=False)
    y, samples = frontend(x[:, :, 0], lengths)
    for clip, length in enumerate(lengths.tolist()):
        wanted = torchaudio.transforms.Resample(rate, 16_000)(x[clip, :length, 0])
        assert int(samples[clip]) == len(wanted)
        torch.testing.assert_close(y[clip, : len(wanted), 0], wanted, atol=1e-6, rtol=1e-5)
        assert not y[clip, len(wanted) :].any()
    assert frontend.worth_caching
    assert not frontend.state_dict()


def test_waveforms_are_normalised_over_the_clips_own_samples() -> None:
    x = torch.tensor([[1.0, 3.0, 0.0, 0.0], [2.0, 4.0, 6.0, 8.0]])
    frontend = Waveform(sample_rate_hz=16_000, normalise=True)
    y, lengths = frontend(x, torch.tensor([2, 4]))
    fifth = 5**0.5
    expected = [[-1, 1, 0, 0], [-3 / fifth, -1 / fifth, 1 / fifth, 3 / fifth]]
    torch.testing.assert_close(y[:, :, 0], torch.tensor(expected), atol=1e-5, rtol=0)
    assert lengths.tolist() == [2, 4]
    assert not frontend.worth_caching


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_where_clips_are_resampled(name: str) -> None:
    shape = ClipShape(num_classes=3, sample_rate_hz=22_050)
    settings = {"config": SPEECH, "normalise_waveform": True}
    expert = build_expert(name, settings, shape).eval()
    x, lengths = noise(12_000, 4321, 9001)
    with torch.no_grad():
        together = expert({"audio": x[:, :, 0], "audio_lengths": lengths})
        for clip, length in enumerate(lengths.tolist()):
            single = {"audio": x[clip : clip + 1, :length, 0], "audio_lengths": lengths[[clip]]}
            torch.testing.assert_close(expert(single)[0], together[clip], atol=1e-5, rtol=1e-5)


def test_steps_are_means_of_frames_and_the_last_of_those_left() -> None:
    torch.manual_seed(0)
    fine, coarse = ours(SPEECH, wavlm=False), ours(SPEECH, wavlm=False, frame_step=4)
    coarse.load_state_dict(fine.state_dict())
    x, lengths = noise(405 + 5 * 320, 405 + 8 * 320)  # 6 and 9 frames
    with torch.no_grad():
        (frames, _), (steps, counts) = fine(x, lengths), coarse(x, lengths)
    assert counts.tolist() == [2, 3]
    for clip, step, first, last in [(0, 0, 0, 4), (0, 1, 4, 6), (1, 1, 4, 8), (1, 2, 8, 9)]:
        wanted = frames[clip, first:last].mean(dim=0)
        torch.testing.assert_close(steps[clip, step], wanted, atol=1e-5, rtol=1e-5)


def test_the_head_sees_the_layers_by_their_learned_shares() -> None:
    encoder = build(settings={"units": 4})
    states = torch.randn(1, 2, 3, 16)
    with torch.no_grad():
        encoder.layer_weights.copy_(torch.tensor([0.0, 0.0, 2.0]).log())  # 0, 0 and all
        got, _ = encoder.head_steps(states, torch.tensor([2]))
        wanted = encoder.hidden(states[:, :, 2]).relu()
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_frames_behind_the_end_take_no_part_in_the_pooling(pooling: str) -> None:
    encoder = build(settings={"pooling": pooling})
    states = torch.randn(1, 5, 3, 16)
    steps, _ = encoder.head_steps(states, torch.tensor([3]))
    assert not steps[:, 3:].any()
    torch.testing.assert_close(
        encoder.head(states, torch.tensor([3])), encoder.head(states[:, :3], torch.tensor([3]))
    )


@pytest.mark.parametrize("config", [SPEECH, SPEECH_LARGE], ids=["base", "large"])
def test_stages_hold_every_parameter_once_from_input_to_output(config: dict[str, Any]) -> None:
    backbone = ours(config, wavlm=True)
    stages = backbone.stages()
    assert len(stages) == 2 + 2
    held = [id(p) for stage in stages for p in stage.parameters()]
    assert sorted(held) == sorted(id(p) for p in backbone.parameters())
    assert stages[0] is backbone.feature_extractor
    norm = id(backbone.encoder.transformer.layer_norm.weight)
    where = [number for number, stage in enumerate(stages) if norm in map(id, stage.parameters())]
    assert where == [3 if config is SPEECH_LARGE else 1]


def test_layer_drop_leaves_out_layers_in_training_alone() -> None:
    quiet = {key: 0.0 for key in complete_config(None, wavlm=False) if key.endswith("dropout")}
    backbone = ours({**SPEECH, **quiet, "encoder_layer_drop": 1.0}, wavlm=False)
    x, lengths = noise(2000)
    kept, _ = backbone.hidden_states(x, lengths)
    assert not torch.allclose(kept[0], kept[1])
    dropped, _ = backbone.train().hidden_states(x, lengths)
    assert torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropped[0], dropped[2])


def test_layer_drop_is_drawn_for_each_clip() -> None:
    quiet = {key: 0.0 for key in complete_config(None, wavlm=False) if key.endswith("dropout")}
    backbone = ours({**SPEECH, **quiet, "encoder_layer_drop": 0.5}, wavlm=False).train()
    torch.manual_seed(0)
    states, _ = backbone.hidden_states(*noise(*[500] * 32))
    dropped = [torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True)]
    assert 4 < sum(dropped) < 28


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_step": 0}, "frame_step must be 1 or more, got 0"),
        ({"units": 0}, "units must be 1 or more, got 0"),
        ({"pooling": "max"}, "Unknown pooling 'max'. Known: mean, attention"),
        ({"config": {"layers": 2}}, "Unknown key 'layers' in config. Known: extractor_mode"),
        ({"config": {"encoder_num_buckets": 8}}, "Unknown key 'encoder_num_buckets' in config"),
        ({"config": {"extractor_mode": "batch"}}, "must be group_norm or layer_norm, got 'batch'"),
        ({"config": {"encoder_num_heads": 5}}, "must divide encoder_embed_dim, got 5 and 768"),
        ({"config": {"encoder_num_layers": 0}}, "encoder_num_layers in config must be a number"),
        ({"config": {"encoder_embed_dim": "768"}}, "must be a number from 1, got '768'"),
        ({"config": {"encoder_dropout": 2}}, r"encoder_dropout in config must be in \[0, 1\]"),
        ({"config": {"extractor_conv_bias": 1}}, "must be true or false, got 1"),
        ({"config": {"extractor_conv_layer_config": [[8, 2]]}}, r"must list \[channels, kernel"),
    ],
)
def test_a_setting_that_makes_no_network_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_expert("wav2vec2", settings, SHAPE)
