"""CNN-14 against the paper's counts, and against a plain implementation of its description.

The reference below follows Kong et al. (2020, arXiv:1912.10211) with torch's and torchaudio's
own STFT and mel filters. Run by hand on recorded speech, `Cnn14` also gave bit for bit what
panns-inference 0.1.1 over torchlibrosa 0.1.0 gives from the same checkpoint, at both rates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from models import ClipShape, build_expert, get_architecture
from models.audio.cnn14 import Cnn14, Cnn14Encoder, Cnn14LogMel
from models.frontends.resampling import Resampling
from models.pretrained import Found, apply_transfer, find_checkpoints, load_backbone
from models.registry import ModelError

WIDTH = 2
CONSTANTS = {32000: (1024, 320, 14000.0), 16000: (512, 160, 8000.0)}


def original_state(rate_hz: int, *, width: int = WIDTH, classes: int = 7) -> dict[str, Tensor]:
    """A checkpoint's tensors by the original's keys and shapes, written from its description."""
    generator = torch.Generator().manual_seed(rate_hz)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*size, generator=generator)

    def norm(name: str, count: int, mean: float = 0.0, scale: float = 1.0) -> dict[str, Tensor]:
        return {
            f"{name}.weight": 1.0 + normal(count, scale=0.2),
            f"{name}.bias": normal(count, scale=0.2),
            f"{name}.running_mean": mean + normal(count, scale=0.1 * scale),
            f"{name}.running_var": scale**2 * (1.0 + normal(count, scale=0.1).abs()),
            f"{name}.num_batches_tracked": torch.tensor(5),
        }

    window, _, high = CONSTANTS[rate_hz]
    time = torch.arange(window, dtype=torch.float64)
    bins = torch.arange(window // 2 + 1, dtype=torch.float64)
    angle = 2 * torch.pi * bins[:, None] * time / window
    hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * time / window)
    state = {
        "spectrogram_extractor.stft.conv_real.weight": (angle.cos() * hann).float()[:, None],
        "spectrogram_extractor.stft.conv_imag.weight": (-angle.sin() * hann).float()[:, None],
        "logmel_extractor.melW": torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 50.0, high, 64, rate_hz, norm="slaney", mel_scale="slaney"
        ),
        **norm("bn0", 64, mean=-40.0, scale=15.0),
    }
    inside = 1
    for number, outside in enumerate([width * 2**n for n in range(6)], start=1):
        block = f"conv_block{number}"
        for layer, channels in ((1, inside), (2, outside)):
            state[f"{block}.conv{layer}.weight"] = normal(
                outside, channels, 3, 3, scale=(3 / (9 * channels)) ** 0.5
            )
            state |= norm(f"{block}.bn{layer}", outside)
        inside = outside
    for name, count in (("fc1", inside), ("fc_audioset", classes)):
        state[f"{name}.weight"] = normal(count, inside, scale=inside**-0.5)
        state[f"{name}.bias"] = normal(count, scale=0.1)
    return state


def reference(state: dict[str, Tensor], x: Tensor, rate_hz: int) -> tuple[Tensor, Tensor]:
    """(B, L) → class probabilities and embeddings."""
    window, hop, high = CONSTANTS[rate_hz]
    spectrum = torch.stft(
        x,
        window,
        hop,
        window=torch.hann_window(window),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = torchaudio.functional.melscale_fbanks(
        window // 2 + 1, 50.0, high, 64, rate_hz, norm="slaney", mel_scale="slaney"
    )
    mel = spectrum.abs().square().transpose(1, 2) @ filters
    maps = 10 * torch.log10(mel.clamp(min=1e-10))[:, None]

    def norm(name: str, y: Tensor) -> Tensor:
        return functional.batch_norm(
            y,
            state[f"{name}.running_mean"],
            state[f"{name}.running_var"],
            state[f"{name}.weight"],
            state[f"{name}.bias"],
        )

    maps = norm("bn0", maps.transpose(1, 3)).transpose(1, 3)
    for number in range(1, 7):
        for layer in (1, 2):
            kernel = state[f"conv_block{number}.conv{layer}.weight"]
            maps = functional.conv2d(maps, kernel, padding=1)
            maps = functional.relu(norm(f"conv_block{number}.bn{layer}", maps))
        maps = functional.avg_pool2d(maps, 2 if number < 6 else 1)
    over_time = maps.mean(dim=3)
    pooled = over_time.max(dim=2).values + over_time.mean(dim=2)
    embedding = functional.relu(pooled @ state["fc1.weight"].T + state["fc1.bias"])
    logits = embedding @ state["fc_audioset.weight"].T + state["fc_audioset.bias"]
    return logits.sigmoid(), embedding


def waveforms(samples: list[int]) -> list[Tensor]:
    """A tone that comes and goes over noise; the first clip is nearly silent."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for number, length in enumerate(samples):
        time = torch.arange(length)
        tone = torch.sin(time * 0.05 * (number + 1)) * (torch.sin(time * 1e-3) > 0)
        noise = 0.01 * torch.randn(length, generator=generator)
        clips.append((0.1 * tone + noise) * 20.0 ** (number - 1))
    return clips


@pytest.mark.parametrize("rate_hz", [32000, 16000])
def test_an_original_checkpoint_loads_unchanged_and_gives_the_originals_outputs(
    rate_hz: int, tmp_path: Path
) -> None:
    state = original_state(rate_hz)
    torch.save({"model": state}, tmp_path / "original.pth")
    network = Cnn14(rate_hz=rate_hz, width=WIDTH, num_classes=7).eval()
    content = torch.load(tmp_path / "original.pth", weights_only=True)
    network.load_state_dict(content["model"], strict=True)
    x = torch.stack(waveforms([rate_hz + 77, rate_hz + 77]))
    with torch.no_grad():
        probabilities, embedding = network(x)
        expected, expected_embedding = reference(state, x, rate_hz)
    torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(embedding, expected_embedding, atol=1e-4, rtol=1e-4)
    assert embedding.std() > 0.05
    assert (embedding[0] - embedding[1]).abs().max() > 0.1, "the clips are not told apart"


@pytest.mark.parametrize("rate_hz", [32000, 16000])
def test_a_batch_of_uneven_clips_gives_what_the_original_gives_of_each_alone(
    rate_hz: int, tmp_path: Path
) -> None:
    state = original_state(rate_hz)
    torch.save({"model": state}, tmp_path / "original.pth")
    shape = ClipShape(num_classes=3, sample_rate_hz=rate_hz)
    encoder = Cnn14Encoder(shape=shape, rate_hz=rate_hz, width=WIDTH).eval()
    load_backbone(encoder.backbone, tmp_path / "original.pth")
    # 32 frames is the shortest; 33 to 63 lose odd frames in one pooling or another.
    hop = CONSTANTS[rate_hz][1]
    clips = waveforms([hop * frames + extra for frames, extra in ((99, 5), (31, 0), (46, 9))])
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        found = encoder(*encoder.frontend(batch, lengths))
        for number, clip in enumerate(clips):
            _, expected = reference(state, clip[None], rate_hz)
            torch.testing.assert_close(found[number], expected[0], atol=1e-4, rtol=1e-4)


def test_a_clip_too_short_for_the_poolings_is_followed_by_silence() -> None:
    frontend = Cnn14LogMel(sample_rate_hz=16000, rate_hz=16000)
    (clip,) = waveforms([100])
    silent = functional.pad(clip, (0, 31 * 160 - 100))
    values, frames = frontend(clip[None], torch.tensor([100]))
    expected, expected_frames = frontend(silent[None], torch.tensor([31 * 160]))
    assert int(frames) == int(expected_frames) == 32
    torch.testing.assert_close(values, expected)


def test_the_papers_network_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        network = Cnn14(rate_hz=32000)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert (trained, frozen) == (80_753_615, 1_083_456)


def test_the_papers_network_has_the_checkpoints_keys_and_shapes() -> None:
    with torch.device("meta"):
        network = Cnn14(rate_hz=32000)
        small = Cnn14(rate_hz=32000, width=WIDTH, num_classes=7)
    expected = {key: tuple(x.shape) for key, x in original_state(32000).items()}
    assert {key: tuple(x.shape) for key, x in small.state_dict().items()} == expected
    shapes = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    assert shapes["spectrogram_extractor.stft.conv_imag.weight"] == (513, 1, 1024)
    assert shapes["logmel_extractor.melW"] == (513, 64)
    assert shapes["conv_block6.conv2.weight"] == (2048, 2048, 3, 3)
    assert shapes["fc1.weight"] == (2048, 2048)
    assert shapes["fc_audioset.weight"] == (527, 2048)


def test_every_backbone_parameter_is_in_one_stage() -> None:
    backbone = Cnn14Encoder(shape=ClipShape(num_classes=3, sample_rate_hz=16000), width=1).backbone
    staged = [id(p) for stage in backbone.stages() for p in stage.parameters()]
    assert sorted(staged) == sorted(id(p) for p in backbone.parameters())
    assert len(backbone.stages()) == 8


def test_a_checkpoint_of_the_other_rate_is_refused(tmp_path: Path) -> None:
    torch.save({"model": original_state(32000)}, tmp_path / "original.pth")
    shape = ClipShape(num_classes=3, sample_rate_hz=16000)
    encoder = Cnn14Encoder(shape=shape, rate_hz=16000, width=WIDTH)
    with pytest.raises(ModelError, match=r"mel filters are \(513, 64\), those of 16000 Hz \(257"):
        load_backbone(encoder.backbone, tmp_path / "original.pth")


def test_an_unknown_rate_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"Unknown rate_hz 8000 of 'cnn14'\. Known: 32000, 16000"):
        build_expert("cnn14", {"rate_hz": 8000}, ClipShape(num_classes=3, sample_rate_hz=16000))


def test_a_checkpoint_found_by_its_published_name_brings_its_rate(tmp_path: Path) -> None:
    for name in ("Cnn14_mAP=0.431.pth", "Cnn14_16k_mAP=0.438.pth"):
        (tmp_path / name).write_bytes(b"weights")
    found = find_checkpoints(get_architecture("cnn14"), tmp_path)
    assert {f.file: f.settings["rate_hz"] for f in found} == {
        "Cnn14_mAP=0.431.pth": 32000,
        "Cnn14_16k_mAP=0.438.pth": 16000,
    }


@pytest.mark.parametrize("transfer", ["finetune", "frozen"])
def test_both_transfers_give_the_checkpoints_embeddings(transfer: str, tmp_path: Path) -> None:
    state = original_state(16000)
    torch.save({"model": state}, tmp_path / "cnn14.pth")
    shape = ClipShape(num_classes=3, sample_rate_hz=16000)
    encoder: Any = Cnn14Encoder(shape=shape, width=WIDTH)
    (own,) = find_checkpoints(get_architecture("cnn14"), tmp_path)
    apply_transfer(encoder, transfer, Found(own.file, own.sha256, {}), tmp_path)
    encoder.eval()
    (clip,) = waveforms([9000])
    with torch.no_grad():
        found = encoder(*encoder.frontend(clip[None], torch.tensor([9000])))
        _, expected = reference(state, clip[None], 16000)
        steps, lengths = encoder.steps(*encoder.frontend(clip[None], torch.tensor([9000])))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)  # frozen: as float16
    assert steps.shape == (1, 1, 64)  # 57 frames
    assert lengths.tolist() == [1]


@pytest.mark.parametrize(("before", "after"), [(44100, 16000), (16000, 32000), (48000, 16000)])
def test_clips_in_a_batch_are_resampled_as_torchaudio_does_each_alone(
    before: int, after: int
) -> None:
    clips = waveforms([before // 20, before // 37, 3])
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    found, after_lengths = Resampling(before, after)(batch, lengths)
    for number, clip in enumerate(clips):
        expected = torchaudio.functional.resample(clip, before, after)
        assert int(after_lengths[number]) == len(expected)
        torch.testing.assert_close(found[number, : len(expected)], expected, atol=1e-6, rtol=1e-5)
        assert not found[number, len(expected) :].any()
