"""torchaudio's speech transformers, of which every layer's output is taken: what a backbone needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from models.audio import huggingface
from models.base import Backbone, FrontEnd
from models.frontends.masks import frame_mask
from models.registry import ModelError

SAMPLE_RATE_HZ = 16_000
"""Sample rate of all audio that they were pretrained on."""

WAV2VEC2_BASE: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 768,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 12,
    "encoder_num_heads": 12,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 3072,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.05,
}
WAVLM_BASE: dict[str, Any] = {
    **WAV2VEC2_BASE,
    "encoder_num_buckets": 320,
    "encoder_max_distance": 800,
}
"""The base models: the arguments of torchaudio's factories."""


def complete_config(config: Mapping[str, Any] | None, *, wavlm: bool) -> dict[str, Any]:
    """A configuration with the base model's values for what is missing.

    Raises:
        ModelError: An unknown argument, or values that make no network.
    """
    base = WAVLM_BASE if wavlm else WAV2VEC2_BASE
    given = {k: x for k, x in (config or {}).items() if k != "aux_num_out"}
    for key in given:
        if key not in base:
            raise ModelError(f"Unknown key '{key}' in config. Known: {', '.join(base)}.")
    whole = {**base, **{k: x for k, x in given.items() if x is not None}}
    for key, usual in base.items():
        _check_value(key, whole[key], usual)
    layers = [list(layer) for layer in whole["extractor_conv_layer_config"]]
    for key in ("encoder_num_heads", "encoder_pos_conv_groups"):
        if whole["encoder_embed_dim"] % whole[key]:
            raise ModelError(
                f"{key} must divide encoder_embed_dim, got {whole[key]} and "
                f"{whole['encoder_embed_dim']}."
            )
    return {**whole, "extractor_conv_layer_config": layers}


def _check_value(key: str, value: Any, usual: Any) -> None:
    """Raises ModelError unless a value of a configuration is of its kind and range."""
    match usual:
        case bool():
            fits, rule = isinstance(value, bool), "be true or false"
        case int():
            fits, rule = isinstance(value, int) and value >= 1, "be a number from 1"
        case float():
            fits, rule = isinstance(value, int | float) and 0 <= value <= 1, "be in [0, 1]"
        case str():
            fits, rule = value in ("group_norm", "layer_norm"), "be group_norm or layer_norm"
        case _:
            fits, rule = _are_convolutions(value), "list [channels, kernel, stride]"
    if not fits:
        raise ModelError(f"{key} in config must {rule}, got {value!r}.")


def _are_convolutions(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(
            isinstance(one, list | tuple)
            and len(one) == 3
            and all(isinstance(size, int) and size >= 1 for size in one)
            for one in value
        )
    )


class Waveform(FrontEnd):
    """Waveforms at 16 kHz, one value a step: (B, L) → (B, L', 1).

    Args:
        sample_rate_hz: Of the clips; resampled (windowed sinc) where it is not 16 kHz.
        normalise: Zero mean and unit variance over each clip's own samples.
    """

    has_mean = False

    def __init__(self, *, sample_rate_hz: int, normalise: bool) -> None:
        super().__init__()
        resampling = torchaudio.transforms.Resample(sample_rate_hz, SAMPLE_RATE_HZ)
        self.down = sample_rate_hz // resampling.gcd
        self.up = SAMPLE_RATE_HZ // resampling.gcd
        self.resampled, self.normalise = self.up != self.down, normalise
        if self.resampled:
            self.width = int(resampling.width)
            self.register_buffer("kernel", resampling.kernel.clone(), persistent=False)
            self.kernel: Tensor
        self.worth_caching = self.resampled
        self.name = f"waveform {sample_rate_hz} {SAMPLE_RATE_HZ} {normalise}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; zero behind each clip's end."""
        if self.resampled:
            padded = functional.pad(x[:, None], (self.width, self.width + self.down))
            x = functional.conv1d(padded, self.kernel, stride=self.down)
            x = x.transpose(1, 2).flatten(1)
            lengths = torch.div(lengths * self.up + self.down - 1, self.down, rounding_mode="floor")
        keep = (~frame_mask(lengths, x.shape[1])).to(x.dtype)
        if self.normalise:
            count = lengths[:, None].to(x.dtype)
            centred = (x - (x * keep).sum(dim=1, keepdim=True) / count) * keep
            x = centred / (centred.square().sum(dim=1, keepdim=True) / count + 1e-7).sqrt()
        return (x * keep)[:, :, None], lengths


class SpeechTransformer(Backbone):
    """torchaudio's wav2vec 2.0, HuBERT or WavLM; every layer's output of every step of a clip.

    Computed by torchaudio's modules, but so that what lies behind a clip's end changes nothing:
    group normalisation counts the clip's own frames, and no attention looks behind its end.

    Args:
        config: Arguments of torchaudio's factory.
        wavlm: Whether it is WavLM's, with relative positions in its attention.
        frame_step: How many 20 ms frames are averaged to a step of the output.
    """

    def __init__(self, config: Mapping[str, Any], *, wavlm: bool, frame_step: int) -> None:
        super().__init__()
        models = torchaudio.models
        build = models.wavlm_model if wavlm else models.wav2vec2_model
        network = build(**config, aux_num_out=None)
        # Under torchaudio's own names, and with them its files' names of tensors.
        self.feature_extractor, self.encoder = network.feature_extractor, network.encoder
        self.wavlm, self.frame_step = wavlm, frame_step
        self.shapes = [(int(k), int(s)) for _, k, s in config["extractor_conv_layer_config"]]
        self.receptive_field = _receptive_field(self.shapes)
        text = json.dumps(config, sort_keys=True).encode()
        self.variant = f"{frame_step} {hashlib.sha256(text).hexdigest()[:12]}"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, 1) → (B, S, layers + 1, E): the first layer's input, then each layer's output."""
        states, frames = self.hidden_states(x, lengths)
        means = [_average(state, frames, self.frame_step) for state in states]
        steps = torch.div(frames + self.frame_step - 1, self.frame_step, rounding_mode="floor")
        return torch.stack(means, dim=2), steps

    def hidden_states(self, x: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, L, 1) → layers + 1 times (B, T, E), zero behind each clip's end, and (B,) frames.

        A clip that is shorter than the receptive field is followed by silence. Where layers
        normalise their input rather than their output, the last is normalised once more.
        """
        maps, frames = self._convolve(x[:, :, 0], lengths)
        behind = frame_mask(frames, maps.shape[1])
        transformer = self.encoder.transformer
        x = self.encoder.feature_projection(maps).masked_fill(behind[:, :, None], 0.0)
        x = x + transformer.pos_conv_embed(x)
        if transformer.layer_norm_first:
            x = transformer.layer_norm(x)
        x = transformer.dropout(x)
        states, bias = [x], None
        for layer in transformer.layers:
            attended, bias = self._attend(layer, x, behind, bias)
            x = self._drop_layer(x, attended)
            states.append(x)
        if not transformer.layer_norm_first:
            states[-1] = transformer.layer_norm(states[-1])
        return [state.float().masked_fill(behind[:, :, None], 0.0) for state in states], frames

    def stages(self) -> list[nn.Module]:
        """Convolutions; projection and positions; then each transformer layer."""
        transformer = self.encoder.transformer
        *first, last = transformer.layers
        embedding = [self.encoder.feature_projection, transformer.pos_conv_embed]
        if transformer.layer_norm_first:
            embedding.append(transformer.layer_norm)
        else:
            last = nn.ModuleList([last, transformer.layer_norm])
        return [self.feature_extractor, nn.ModuleList(embedding), *first, last]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Backbone`; of torchaudio's own files, or of the Hugging Face layout."""
        if any(key.startswith("encoder.transformer.") for key in state):
            named = {k: x for k, x in state.items() if not k.startswith("aux.")}
        else:
            named = huggingface.rename_tensors(state, wavlm=self.wavlm)
        # Weight normalisation had other names before torch 2.0.
        before = "encoder.transformer.pos_conv_embed.conv."
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            if before + old in named:
                named[f"{before}parametrizations.weight.{new}"] = named.pop(before + old)
        return named

    def _convolve(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) → (B, T, C), (B,) frames; T may be a few more than the longest clip's."""
        x = functional.pad(x, (0, self.receptive_field - 1))[:, None]
        frames = lengths.clamp(min=self.receptive_field)
        for block, (kernel, stride) in zip(
            self.feature_extractor.conv_layers, self.shapes, strict=True
        ):
            x = block.conv(x)
            frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
            if isinstance(block.layer_norm, nn.GroupNorm):
                x = _normalise_channels(x, frames, block.layer_norm)
            elif block.layer_norm is not None:
                x = block.layer_norm(x)
            x = functional.gelu(x)
        return x.transpose(1, 2), frames

    def _attend(
        self, layer: nn.Module, x: Tensor, behind: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One transformer layer; WavLM's hand on the first one's position bias."""
        if self.wavlm:
            unseen = torch.zeros_like(behind, dtype=torch.float32).masked_fill(behind, -torch.inf)
            return layer(x, position_bias=bias, key_padding_mask=unseen)  # type: ignore[no-any-return]
        seen = (~behind)[:, None, None].expand(-1, 1, x.shape[1], -1)
        return layer(x, attention_mask=seen)  # type: ignore[no-any-return]

    def _drop_layer(self, before: Tensor, after: Tensor) -> Tensor:
        """LayerDrop (Fan et al., 2020, arXiv:1909.11556), drawn for each clip.

        A layer that is dropped computes all the same: distributed training waits for the
        gradients of every parameter in every step.
        """
        share = self.encoder.transformer.layer_drop
        if not (self.training and share):
            return after
        dropped = torch.rand(before.shape[0], 1, 1, device=before.device) < share
        return torch.where(dropped, before, after)


def _receptive_field(shapes: list[tuple[int, int]]) -> int:
    """Samples that one frame sees, of (kernel, stride) from input to output."""
    field = 1
    for kernel, stride in reversed(shapes):
        field = (field - 1) * stride + kernel
    return field


def _normalise_channels(x: Tensor, frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group normalisation, one channel a group, over a clip's own frames: (B, C, T)."""
    assert norm.num_groups == norm.num_channels, "one channel a group"
    x = x.float()
    keep = (~frame_mask(frames, x.shape[2])).to(x.dtype)[:, None]
    count = frames[:, None, None].to(x.dtype)
    centred = x - (x * keep).sum(dim=2, keepdim=True) / count
    variance = (centred.square() * keep).sum(dim=2, keepdim=True) / count
    scaled = centred * torch.rsqrt(variance + norm.eps)
    return scaled * norm.weight[:, None] + norm.bias[:, None]


def _average(x: Tensor, frames: Tensor, step: int) -> Tensor:
    """Means of `step` frames, a clip's last of those left: (B, T, E) → (B, ⌈T / step⌉, E)."""
    count = (x.shape[1] + step - 1) // step
    padded = functional.pad(x, (0, 0, 0, step - 1))[:, : count * step]
    sums = padded.reshape(x.shape[0], -1, step, x.shape[2]).sum(dim=2)
    start = step * torch.arange(count, device=x.device)[None]
    own = (frames[:, None] - start).clamp(min=1, max=step)
    return sums / own[:, :, None].to(x.dtype)
