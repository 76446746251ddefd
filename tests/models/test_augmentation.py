from __future__ import annotations

import math

import pytest
import torch

from models.augmentation import mixup, spec_augment, speed_perturb, time_crop


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
