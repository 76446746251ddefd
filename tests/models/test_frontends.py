"""Front ends by hand, and against torchaudio."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio
from torch import Tensor

from models.frontends.frames import Features, Frames
from models.frontends.functionals import Functionals
from models.frontends.masks import frame_mask
from models.frontends.spectral import LogMel, SpectrogramImage, Stft, normalise
from models.registry import ModelError

RATE = 16000


def tone(hz: float, samples: int = RATE, harmonics: int = 1) -> Tensor:
    time = torch.arange(samples) / RATE
    return 0.1 * sum(  # type: ignore[return-value]
        (torch.sin(2 * math.pi * hz * k * time) / k for k in range(1, harmonics + 1)),
        torch.zeros(samples),
    )


def one(x: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of one clip."""
    return x[None], torch.tensor([len(x)])


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_the_mask_is_true_behind_the_end() -> None:
    assert frame_mask(torch.tensor([2, 0, 3]), 3).tolist() == [
        [False, False, True],
        [True, True, True],
        [False, False, False],
    ]


def test_the_power_spectrum_of_one_impulse_is_the_windows() -> None:
    # Hann(4) = 0, ½, 1, ½; the impulse at sample 2 lies in the middle of frame 1 (hop 2).
    power, frames = Stft(fft_size=4, hop=2)(*one(torch.tensor([0.0, 0.0, 1.0, 0.0])))
    assert frames.tolist() == [3]
    torch.testing.assert_close(power[0, 1], torch.ones(3))
    torch.testing.assert_close(power[0, [0, 2]], torch.zeros(2, 3))


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 319, 4800])
@pytest.mark.parametrize("frontend", [LogMel, SpectrogramImage])
def test_frames_are_one_and_every_whole_hop(
    frontend: type[LogMel] | type[SpectrogramImage], samples: int
) -> None:
    values, frames = frontend(sample_rate_hz=RATE)(*one(noise(samples)))
    assert frames.tolist() == [1 + samples // 160]
    assert values.shape[1] == 1 + samples // 160
    assert torch.isfinite(values).all()


def test_log_mel_is_torchaudios_away_from_the_edges() -> None:
    ours, _ = LogMel(sample_rate_hz=RATE, num_mels=64).decibels(*one(noise(8000)))
    reference = torchaudio.transforms.MelSpectrogram(
        sample_rate=RATE,
        n_fft=512,
        hop_length=160,
        f_min=50.0,
        f_max=8000.0,
        n_mels=64,
        norm="slaney",
        mel_scale="slaney",
    )(noise(8000))
    torch.testing.assert_close(
        ours[0, 2:-2], 10 * torch.log10(reference.T)[2:-2], atol=1e-3, rtol=1e-4
    )


def slaney_mel(hz: float) -> float:
    """Slaney's Auditory Toolbox (1998): linear up to 1 kHz, then 27 steps a factor of 6.4."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


@pytest.mark.parametrize("hz", [440.0, 1000.0, 3000.0])
def test_a_tone_lies_in_its_mel_band(hz: float) -> None:
    decibels, _ = LogMel(sample_rate_hz=RATE, num_mels=40).decibels(*one(tone(hz)))
    low, high = slaney_mel(50), slaney_mel(8000)
    # 40 bands have 42 edges; band i is centred at edge i + 1.
    expected = round((slaney_mel(hz) - low) / (high - low) * 41) - 1
    assert decibels[0, 50].argmax() == expected


def test_clip_normalisation_gives_mean_0_and_deviation_1_over_a_clips_own_frames() -> None:
    audio = torch.zeros(2, RATE)
    audio[0], audio[1, :8000] = noise(RATE), noise(8000, seed=1)
    values, frames = LogMel(sample_rate_hz=RATE)(audio, torch.tensor([RATE, 8000]))
    assert frames.tolist() == [101, 51]
    for clip, count in enumerate(frames.tolist()):
        own = values[clip, :count]
        assert abs(float(own.mean())) < 1e-4
        assert float(own.std(correction=0)) == pytest.approx(1.0, abs=0.02)
        assert (values[clip, count:] == 0).all()


def test_band_normalisation_scales_every_band_by_itself() -> None:
    x = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [99.0, 99.0]]])
    got = normalise(x, torch.tensor([2]), "bin")
    expected = torch.tensor([[[-1 / 1.001, -10 / 10.001], [1 / 1.001, 10 / 10.001], [0.0, 0.0]]])
    torch.testing.assert_close(got, expected)


def test_clip_normalisation_by_hand() -> None:
    # Own frames 1, 3, 5, 7: mean 4, deviation √5.
    x = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [99.0, 99.0]]])
    got = normalise(x, torch.tensor([2]), "clip")
    expected = torch.tensor([[[-3.0, -1.0], [1.0, 3.0], [0.0, 0.0]]]) / (math.sqrt(5) + 1e-3)
    torch.testing.assert_close(got, expected)


def test_no_normalisation_only_cuts_what_is_behind_the_end() -> None:
    x = torch.tensor([[[1.0], [2.0]]])
    assert normalise(x, torch.tensor([1]), "none").tolist() == [[[1.0], [0.0]]]


def test_clip_normalisation_takes_loudness_away() -> None:
    frontend = LogMel(sample_rate_hz=RATE)
    quiet, _ = frontend(*one(noise(8000)))
    loud, _ = frontend(*one(noise(8000) * 5))
    torch.testing.assert_close(loud, quiet, atol=1e-3, rtol=0)


@pytest.mark.parametrize("frontend", [LogMel, SpectrogramImage])
def test_an_unknown_normalisation_is_refused(
    frontend: type[LogMel] | type[SpectrogramImage],
) -> None:
    with pytest.raises(
        ModelError, match=r"Unknown normalisation 'mean'\. Known: clip, bin, none\."
    ):
        frontend(sample_rate_hz=RATE, normalisation="mean")


def test_front_ends_that_compute_different_things_have_different_names() -> None:
    names = [
        LogMel(sample_rate_hz=RATE).name,
        LogMel(sample_rate_hz=8000).name,
        LogMel(sample_rate_hz=RATE, num_mels=40).name,
        LogMel(sample_rate_hz=RATE, window_ms=25.0).name,
        LogMel(sample_rate_hz=RATE, hop_ms=20.0).name,
        LogMel(sample_rate_hz=RATE, low_hz=0.0).name,
        LogMel(sample_rate_hz=RATE, normalisation="bin").name,
        SpectrogramImage(sample_rate_hz=RATE).name,
        SpectrogramImage(sample_rate_hz=8000).name,
        SpectrogramImage(sample_rate_hz=RATE, num_bins=100).name,
        SpectrogramImage(sample_rate_hz=RATE, normalisation="none").name,
        Functionals(sample_rate_hz=RATE).name,
        Functionals(sample_rate_hz=8000).name,
        Frames(count=2, height=4, width=4).name,
        Frames(count=3, height=4, width=4).name,
        Frames(count=2, height=5, width=4).name,
        Frames(count=2, height=4, width=5).name,
        Features().name,
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("num_bins", [100, 200])
def test_the_image_has_300_columns_and_one_for_3_seconds(num_bins: int) -> None:
    frontend = SpectrogramImage(sample_rate_hz=RATE, num_bins=num_bins)
    image, frames = frontend(*one(noise(48000)))
    assert image.shape == (1, 301, num_bins)
    assert frames.tolist() == [301]
    assert frontend.frames_per_second == 100


def test_a_tone_is_a_line_in_the_image() -> None:
    frontend = SpectrogramImage(sample_rate_hz=RATE, num_bins=200, normalisation="none")
    image, _ = frontend(*one(tone(2000.0)))
    assert image.min() >= 0
    assert image.max() <= 1
    # 200 rows up to 8 kHz: 40 Hz a row, so 2 kHz lies between rows 49 and 50.
    assert int(image[0, 50].argmax()) in (49, 50)


def test_silence_is_the_images_floor() -> None:
    frontend = SpectrogramImage(sample_rate_hz=RATE, normalisation="none")
    assert (frontend(*one(torch.zeros(1600)))[0] == 0).all()


def test_functionals_are_17_statistics_of_65_contours() -> None:
    frontend = Functionals(sample_rate_hz=RATE)
    values, lengths = frontend(*one(noise(8000)))
    assert frontend.num_functionals == 65 * 17 == values.shape[1]
    assert lengths.tolist() == [1]
    assert frontend.contours(*one(noise(8000)))[0].shape == (1, 51, 65)


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(8000),
        torch.full((8000,), 0.5),
        noise(1),
        noise(100),
        noise(640),
        torch.ones(8000),
    ],
    ids=["silence", "constant", "one sample", "6 ms", "40 ms", "clipped"],
)
def test_functionals_are_finite(audio: Tensor) -> None:
    assert torch.isfinite(Functionals(sample_rate_hz=RATE)(*one(audio))[0]).all()


def test_functionals_at_8_khz_are_as_many() -> None:
    values, _ = Functionals(sample_rate_hz=8000)(*one(noise(8000)))
    assert values.shape == (1, 1105)


MEAN, DEVIATION, SKEWNESS, LEAST, TENTH, MEDIAN, NINETIETH, MOST = range(8)


def test_the_statistics_are_those_of_the_contours() -> None:
    frontend = Functionals(sample_rate_hz=RATE)
    contours = frontend.contours(*one(noise(8000)))[0][0].double()
    values = frontend(*one(noise(8000)))[0][0].double()
    static = values[: 65 * 8].reshape(8, 65)
    ordered = contours.sort(dim=0).values
    count = len(contours)
    for row, expected in {
        MEAN: contours.mean(dim=0),
        DEVIATION: contours.std(dim=0, correction=0),
        LEAST: ordered[0],
        TENTH: ordered[round((count - 1) * 0.1)],
        MEDIAN: ordered[(count - 1) // 2],
        NINETIETH: ordered[round((count - 1) * 0.9)],
        MOST: ordered[-1],
    }.items():
        torch.testing.assert_close(static[row], expected, atol=1e-3, rtol=1e-3)


def test_the_slope_of_a_contour_is_least_squares() -> None:
    import numpy as np

    audio = noise(8000) * torch.linspace(0.1, 2.0, 8000)
    frontend = Functionals(sample_rate_hz=RATE)
    contours = frontend.contours(*one(audio))[0][0].double().numpy()
    time = np.arange(len(contours)) / len(contours)
    slope = frontend(*one(audio))[0][0, -65:].double().numpy()
    energy = 60  # after 40 bands and 20 MFCC
    assert slope[energy] == pytest.approx(np.polyfit(time, contours[:, energy], 1)[0], rel=1e-3)
    assert slope[energy] > 1


def voiced(hz: float, kind: str) -> Tensor:
    if kind == "tone":
        return tone(hz)
    if kind == "harmonic":
        return tone(hz, harmonics=10)
    pulses = torch.zeros(RATE)
    pulses[(torch.arange(int(hz)) * (RATE / hz)).long()] = 0.5
    return pulses


@pytest.mark.parametrize(
    ("hz", "kind"),
    [
        (200, "pulse"),
        *(
            (hz, kind)
            for hz in (100, 120, 150, 200, 250, 330, 400)
            for kind in ("harmonic", "tone")
        ),
    ],
)
def test_the_pitch_contour_follows_the_pitch(hz: float, kind: str) -> None:
    contours, _ = Functionals(sample_rate_hz=RATE).contours(*one(voiced(hz, kind)))
    pitch, voicing = contours[0, 2:-2, 61], contours[0, 2:-2, 62]
    right = (pitch - math.log2(hz / 62.5)).abs() < 0.1
    assert right.float().mean() > 0.9
    assert voicing.median() > 0.9


def test_silence_has_no_pitch() -> None:
    contours, _ = Functionals(sample_rate_hz=RATE).contours(*one(torch.zeros(8000)))
    assert (contours[0, :, 61:63] == 0).all()


def test_noise_is_less_voiced_than_a_tone() -> None:
    frontend = Functionals(sample_rate_hz=RATE)
    hiss, _ = frontend.contours(*one(noise(8000)))
    sung, _ = frontend.contours(*one(tone(200, 8000, harmonics=10)))
    assert hiss[0, :, 62].median() < 0.7 < sung[0, :, 62].median()


def film(frames: int, height: int = 4, width: int = 4) -> Tensor:
    """Frame v is v everywhere: (1, V, H, W, 3)."""
    return torch.arange(frames, dtype=torch.uint8)[None, :, None, None, None].expand(
        1, frames, height, width, 3
    )


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [
        (10, 5, [1, 3, 5, 7, 9]),
        (4, 4, [0, 1, 2, 3]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0, 0, 0]),
        (9, 2, [2, 6]),
    ],
)
def test_frames_are_taken_evenly(frames: int, count: int, expected: list[int]) -> None:
    taken, lengths = Frames(count=count, height=4, width=4)(film(frames), torch.tensor([frames]))
    assert taken.shape == (1, count, 3, 4, 4)
    assert lengths.tolist() == [count]
    values = torch.tensor(expected) / 255.0
    scaled = (values - values.mean()) / (values.repeat_interleave(48).std() + 1e-3)
    torch.testing.assert_close(taken[0, :, 0, 0, 0], scaled, atol=1e-5, rtol=1e-5)


def test_frames_behind_the_end_are_never_taken() -> None:
    frames = film(10).clone()
    frames[:, 4:] = 255
    padded, _ = Frames(count=3, height=4, width=4)(frames, torch.tensor([4]))
    cut, _ = Frames(count=3, height=4, width=4)(frames[:, :4], torch.tensor([4]))
    assert torch.equal(padded, cut)


def test_frames_are_standardised_by_their_own_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 5, 8, 8, 3), generator=generator, dtype=torch.uint8)
    frames[1] //= 4  # a dark clip
    taken, _ = Frames(count=5, height=8, width=8)(frames, torch.tensor([5, 5]))
    for clip in taken:
        assert abs(float(clip.mean())) < 1e-4
        assert float(clip.std()) == pytest.approx(1.0, abs=0.03)


def test_frames_are_resized_without_moving_what_they_show() -> None:
    frames = torch.zeros(1, 1, 40, 60, 3, dtype=torch.uint8)
    frames[:, :, :20, 30:] = 255  # top right
    taken, _ = Frames(count=1, height=10, width=20)(frames, torch.tensor([1]))
    assert taken.shape == (1, 1, 3, 10, 20)
    bright = taken[0, 0, 0] > 0
    assert bright[1:4, 11:].all()
    assert not bright[6:].any()
    assert not bright[:, :9].any()


def test_colours_stay_in_their_channels() -> None:
    frames = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8)
    frames[..., 2] = 200
    taken, _ = Frames(count=1, height=4, width=4)(frames, torch.tensor([1]))
    assert (taken[0, 0, 2] > 0).all()
    assert (taken[0, 0, :2] < 0).all()


def test_features_pass_as_they_are() -> None:
    x = torch.randn(2, 3)
    values, lengths = Features()(x, torch.tensor([1, 1]))
    assert torch.equal(values, x)
    assert lengths.tolist() == [1, 1]
