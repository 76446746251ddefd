from __future__ import annotations

import math

import pytest
import torch

from models.augmentation import (
    add_noise,
    colour_jitter,
    mixup,
    pitch_perturb,
    reverberate,
    spatial_crop,
    spec_augment,
    speed_perturb,
    time_crop,
)


def test_spec_augment_zeroes_whole_frames_and_bands_and_nothing_else() -> None:
    torch.manual_seed(0)
    x = torch.rand(50, 20, 16) + 1.0
    got = spec_augment(x, torch.full((50,), 20), time_share=0.2, band_share=0.25)
    masked = got == 0
    assert torch.equal(got[~masked], x[~masked])
    time, band = masked.all(dim=2), masked.all(dim=1)
    assert torch.equal(masked, time[:, :, None] | band[:, None, :])
    # Two masks, each narrower than 4 frames (20 %) or 4 bands (25 %).
    assert int(time.sum(dim=1).max()) <= 8
    assert int(band.sum(dim=1).max()) <= 8
    assert int(time.sum()) > 0
    assert int(band.sum()) > 0


def test_spec_augment_differs_between_clips() -> None:
    torch.manual_seed(0)
    got = spec_augment(torch.ones(8, 40, 16), torch.full((8,), 40), time_share=0.3, band_share=0.3)
    assert not all(torch.equal(got[0], clip) for clip in got[1:])


def test_time_masks_lie_within_a_clip() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([10] * 100)
    got = spec_augment(torch.ones(100, 400, 4), lengths, time_share=0.5, band_share=0.0)
    masked = (got == 0).all(dim=2)
    assert not masked[:, 10:].any()
    assert masked[:, :10].any(dim=0).all(), "no frame of the clip is spared for good"


@pytest.mark.parametrize(("time_share", "band_share"), [(0.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
def test_a_share_of_zero_masks_nothing(time_share: float, band_share: float) -> None:
    torch.manual_seed(0)
    got = spec_augment(
        torch.ones(20, 20, 20), torch.full((20,), 20), time_share=time_share, band_share=band_share
    )
    masked = got == 0
    assert masked.all(dim=2).any() == (time_share > 0)
    assert masked.all(dim=1).any() == (band_share > 0)


def test_speed_by_hand() -> None:
    # Twice as fast: the midpoints of pairs.
    faster, lengths = speed_perturb(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([4]), 2.0)
    assert faster.tolist() == [[0.5, 2.5]]
    assert lengths.tolist() == [2]


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_divides_lengths_by_the_factor(factor: float) -> None:
    x, lengths = speed_perturb(torch.randn(2, 1000), torch.tensor([1000, 500]), factor)
    assert x.shape == (2, int(1000 / factor))
    assert lengths.tolist() == [int(1000 / factor), int(500 / factor)]


def test_faster_speech_is_higher() -> None:
    time = torch.arange(16000) / 16000
    faster, _ = speed_perturb(
        torch.sin(2 * math.pi * 200 * time)[None], torch.tensor([16000]), 1.25
    )
    spectrum = torch.fft.rfft(faster[0]).abs()
    # 12 800 samples at 16 kHz: 1.25 Hz a bin.
    assert int(spectrum.argmax()) * 1.25 == pytest.approx(250, abs=1.25)


def test_speed_leaves_zeros_behind_the_end() -> None:
    x = torch.zeros(1, 1000)
    x[:, :500] = 1.0
    faster, lengths = speed_perturb(x, torch.tensor([500]), 1.1)
    assert (faster[0, int(lengths) + 1 :] == 0).all()


def test_a_one_sample_clip_survives_speed() -> None:
    x, lengths = speed_perturb(torch.ones(1, 1), torch.tensor([1]), 1.5)
    assert x.shape == (1, 1)
    assert lengths.tolist() == [1]


def test_mixup_combines_inputs_as_it_combines_targets() -> None:
    torch.manual_seed(0)
    identity = torch.eye(6)
    inputs = {"audio": identity.clone(), "audio_lengths": torch.arange(1, 7)}
    mixed, targets = mixup(inputs, identity, 0.4)
    # With one-hot rows the mixed inputs spell out who was mixed with whom, and how.
    torch.testing.assert_close(mixed["audio"], targets)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    shares = targets.diagonal()
    assert (shares >= 0.5).all()
    assert (targets > 0).sum(dim=1).max() == 2
    partner = (targets - torch.diag(shares)).argmax(dim=1)
    moved = shares < 1
    expected = torch.arange(1, 7)
    expected[moved] = torch.maximum(expected[moved], partner[moved] + 1)
    assert torch.equal(mixed["audio_lengths"], expected)
    assert mixed["audio_lengths"].dtype == torch.int64


def test_mixup_leaves_its_inputs_alone() -> None:
    x = torch.rand(4, 3)
    before = x.clone()
    mixup({"features": x}, torch.eye(4), 0.4)
    assert torch.equal(x, before)


def test_mixup_mixes_modalities_of_the_same_pairs() -> None:
    torch.manual_seed(1)
    inputs = {"audio": torch.eye(5), "video": torch.eye(5)}
    mixed, _ = mixup(inputs, torch.eye(5), 1.0)
    assert torch.equal(mixed["audio"], mixed["video"])
    assert not torch.equal(mixed["audio"], torch.eye(5))


def test_clips_no_longer_than_the_crop_stay_as_they_are() -> None:
    x, lengths = torch.rand(2, 5, 3), torch.tensor([5, 2])
    cropped, kept = time_crop(x, lengths, 5)
    assert cropped is x
    assert kept is lengths


def test_longer_clips_are_cropped_inside() -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, 9.0)[None, :, None].repeat(50, 1, 1)
    x[25:, 2:] = 0
    lengths = torch.tensor([8] * 25 + [2] * 25)
    cropped, kept = time_crop(x, lengths, 3)
    assert cropped.shape == (50, 3, 1)
    assert kept.tolist() == [3] * 25 + [2] * 25
    assert (cropped[:25, :, 0].diff(dim=1) == 1).all()
    assert len(set(cropped[:25, 0, 0].tolist())) > 1
    assert (cropped[25:, :, 0] == torch.tensor([1.0, 2.0, 0.0])).all()


def test_noise_lies_ten_to_thirty_decibels_below_and_within_the_clip() -> None:
    torch.manual_seed(0)
    x = torch.sin(torch.arange(4000) / 7.0).repeat(40, 1)
    lengths = torch.tensor([4000, 2000] * 20)
    x[1::2, 2000:] = 0
    added = add_noise(x, lengths, 1.0) - x
    assert (added[1::2, 2000:] == 0).all()
    power = x.square().sum(1) / added.square().sum(1)
    decibels = 10 * torch.log10(power)
    assert 9.5 < float(decibels.min()) < 14
    assert 26 < float(decibels.max()) < 30.5


def test_a_share_of_the_clips_gets_noise() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 50)
    changed = (add_noise(x, torch.full((200,), 50), 0.3) != x).any(dim=1)
    assert 35 <= int(changed.sum()) <= 85


def test_a_room_keeps_level_length_and_onset() -> None:
    torch.manual_seed(0)
    x = torch.zeros(2, 8000)
    x[0, 1000] = 1.0
    x[1, 100:300] = torch.randn(200)
    lengths = torch.tensor([8000, 4000])
    wet = reverberate(x, lengths, 16_000, 1.0)
    torch.testing.assert_close(wet.norm(dim=1), x.norm(dim=1), atol=1e-4, rtol=1e-4)
    assert (wet[0, :1000].abs() < 1e-5).all(), "no echo before the sound"
    assert (wet[0, 1001:1500].abs() > 1e-5).any(), "and some after it"
    assert (wet[1, 4000:] == 0).all()
    early, late = wet[0, 1001:1401].square().sum(), wet[0, 2400:2800].square().sum()
    assert early > 2 * late


def test_rooms_for_nobody_change_nothing() -> None:
    x = torch.randn(3, 500)
    assert torch.equal(reverberate(x, torch.full((3,), 500), 16_000, 0.0), x)


@pytest.mark.parametrize("semitones", [-4.0, 3.0])
def test_pitch_moves_and_length_stays(semitones: float) -> None:
    time = torch.arange(16000) / 16000
    x = torch.sin(2 * math.pi * 300 * time).repeat(2, 1)
    x[1, 8000:] = 0
    shifted = pitch_perturb(x, torch.tensor([16000, 8000]), semitones)
    assert shifted.shape == x.shape
    assert (shifted[1, 8000:] == 0).all()
    spectrum = torch.fft.rfft(shifted[0, 2000:14000]).abs()
    found = float(spectrum.argmax()) * 16000 / 12000
    assert found == pytest.approx(300 * 2 ** (semitones / 12), rel=0.02)


def test_a_spatial_crop_is_a_window_of_the_frames_the_same_for_a_whole_clip() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 20).repeat(20, 1)
    frames = torch.stack([ramp, ramp.T])[None, None].repeat(30, 3, 1, 1, 1)
    cut = spatial_crop(frames, 0.4)
    assert cut.shape == frames.shape
    torch.testing.assert_close(cut[:, 0], cut[:, 2])
    spread = cut[:, 0, 0].amax(dim=(1, 2)) - cut[:, 0, 0].amin(dim=(1, 2))
    assert 0.55 < float(spread.min()) < 0.75
    assert float(spread.max()) <= 1.0
    assert len({round(float(x), 4) for x in cut[:, 0, 0, 0, 0]}) > 20
    # Along its own axis the ramp stays a ramp, across it constant.
    assert float(cut[:, 0, 0].diff(dim=1).abs().max()) < 1e-4


def test_colours_change_alike_in_all_frames_of_a_clip_and_maps_do_not() -> None:
    torch.manual_seed(0)
    frames = torch.randn(6, 2, 4, 5, 5)
    frames[:, 1] = frames[:, 0]
    changed = colour_jitter(frames, 0.4)
    torch.testing.assert_close(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, :, 3], frames[:, :, 3])
    moved = (changed - frames)[:, :, :3].abs().mean(dim=(1, 2, 3, 4))
    assert (moved > 1e-3).all()
    assert len({round(float(x), 5) for x in moved}) == 6


def test_a_jitter_of_nothing_is_nothing() -> None:
    frames = torch.randn(2, 3, 3, 4, 4)
    torch.testing.assert_close(colour_jitter(frames, 0.0), frames)
