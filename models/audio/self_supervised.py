"""Transformers that were pretrained on unlabelled speech: wav2vec 2.0, HuBERT, WavLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from models.audio import huggingface
from models.audio.speech_transformer import (
    SAMPLE_RATE_HZ,
    WAV2VEC2_BASE,
    SpeechTransformer,
    Waveform,
    complete_config,
)
from models.base import BackboneEncoder
from models.frontends.masks import frame_mask
from models.layers import AttentionPooling
from models.registry import Checkpoint, ClipShape, ModelError, Settings, register

_POOLINGS = ("mean", "attention")


class _SelfSupervised(BackboneEncoder):
    """Base of the three: the layers' learned mean, a linear layer a step, pooling over time.

    The weighted sum is that of SUPERB (Yang et al., 2021, arXiv:2105.01051).
    """

    kind = "audio"
    wavlm = False

    def __init__(
        self,
        *,
        shape: ClipShape,
        config: Mapping[str, Any] | None = None,
        normalise_waveform: bool = False,
        frame_step: int = 4,
        units: int = 256,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        for name, value in (("frame_step", frame_step), ("units", units)):
            if value < 1:
                raise ModelError(f"{name} must be 1 or more, got {value}.")
        if pooling not in _POOLINGS:
            raise ModelError(f"Unknown pooling '{pooling}'. Known: {', '.join(_POOLINGS)}.")
        whole = complete_config(config, wavlm=self.wavlm)
        self.frontend = Waveform(sample_rate_hz=shape.sample_rate_hz, normalise=normalise_waveform)
        self.backbone = SpeechTransformer(whole, wavlm=self.wavlm, frame_step=frame_step)
        self.layer_weights = nn.Parameter(torch.zeros(whole["encoder_num_layers"] + 1))
        self.hidden = nn.Linear(whole["encoder_embed_dim"], units)
        self.pool = AttentionPooling(units) if pooling == "attention" else None
        self.embedding_dim = units

    def head(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, layers + 1, E) → (B, D)."""
        steps, lengths = self.head_steps(x, lengths)
        if self.pool is not None:
            return self.pool(steps, lengths)  # type: ignore[no-any-return]
        return steps.sum(dim=1) / lengths[:, None].to(steps.dtype)

    def head_steps(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, layers + 1, E) → (B, S, D), (B,)."""
        share = self.layer_weights.softmax(dim=0)
        mixed = (x * share[:, None]).sum(dim=2)
        steps = torch.relu(self.hidden(mixed))
        return steps.masked_fill(frame_mask(lengths, x.shape[1])[:, :, None], 0.0), lengths


def _cost(settings: Settings, shape: ClipShape) -> float:
    """The same for all three: WavLM's gates add little."""
    config = {**WAV2VEC2_BASE, **(settings.get("config") or {})}
    frames = shape.seconds * SAMPLE_RATE_HZ
    total, channels = 0.0, 1
    for outside, kernel, stride in config["extractor_conv_layer_config"]:
        frames /= stride
        total += frames * channels * outside * kernel
        channels = outside
    dim, wide = config["encoder_embed_dim"], config["encoder_ff_interm_features"]
    total += frames * channels * dim
    total += (
        frames * dim * dim / config["encoder_pos_conv_groups"] * config["encoder_pos_conv_kernel"]
    )
    layer = frames * (4 * dim * dim + 2 * dim * wide) + 2 * frames * frames * dim
    return float(total + config["encoder_num_layers"] * layer)


def _read(path: Path, *, model_type: str) -> Settings:
    """Return the settings of a folder's own configuration; a torchaudio file's are known."""
    return huggingface.read_settings(path, model_type) if path.is_dir() else {}


def _checkpoints(
    model_type: str, owner: str, published: Mapping[str, str], folders: tuple[str, ...]
) -> tuple[Checkpoint, ...]:
    """One a kind of weights.

    Args:
        model_type: As `config.json` names it.
        owner: On Hugging Face.
        published: torchaudio's name of its pipeline → the same weights' folder.
        folders: Further ones, in the Hugging Face layout alone, with their owner.
    """
    read: Callable[[Path], Settings] = partial(_read, model_type=model_type)
    found = []
    for name, folder in published.items():
        # Private, but what its public functions would download and build.
        bundle = getattr(torchaudio.pipelines, name)
        config = {k: x for k, x in bundle._params.items() if k != "aux_num_out"}
        if layers := config["extractor_conv_layer_config"]:
            config["extractor_conv_layer_config"] = [list(layer) for layer in layers]
        settings = {"config": config, "normalise_waveform": bundle._normalize_waveform}
        source = f"torchaudio.pipelines.{name}, or huggingface.co/{owner}/{folder}"
        found.append(
            Checkpoint(files=(bundle._path, folder), source=source, settings=settings, read=read)
        )
    for folder in folders:
        source, name = f"huggingface.co/{folder}", folder.split("/")[1]
        found.append(Checkpoint(files=(name,), source=source, settings={}, read=read))
    found.append(
        Checkpoint(
            files=(model_type,),
            source=f"any folder with a config.json of model_type {model_type}",
            settings={},
            read=read,
        )
    )
    return tuple(found)


_DEFAULT: dict[str, Any] = {"frame_step": 4, "units": 256, "pooling": "mean"}
_TRAINING: dict[str, Any] = {
    "epochs": 20,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "dropout": 0.2,
    "batch_size": 16,
    "label_smoothing": 0.1,
}


@register(
    "wav2vec2",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default=_DEFAULT,
    training=_TRAINING,
    paper="Baevski et al. 2020",
    checkpoints=_checkpoints(
        "wav2vec2",
        "facebook",
        {
            "WAV2VEC2_BASE": "wav2vec2-base",
            "WAV2VEC2_LARGE": "wav2vec2-large",
            "WAV2VEC2_LARGE_LV60K": "wav2vec2-large-lv60",
            "WAV2VEC2_XLSR53": "wav2vec2-large-xlsr-53",
            "WAV2VEC2_XLSR_300M": "wav2vec2-xls-r-300m",
            "WAV2VEC2_XLSR_1B": "wav2vec2-xls-r-1b",
            "WAV2VEC2_XLSR_2B": "wav2vec2-xls-r-2b",
            "WAV2VEC2_ASR_BASE_960H": "wav2vec2-base-960h",
            "WAV2VEC2_ASR_LARGE_960H": "wav2vec2-large-960h",
            "WAV2VEC2_ASR_LARGE_LV60K_960H": "wav2vec2-large-960h-lv60",
        },
        ("facebook/wav2vec2-large-robust", "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"),
    ),
    from_scratch=False,
)
class Wav2Vec2(_SelfSupervised):
    """wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477), and XLSR and XLS-R of its shape.

    Differs from the paper: instead of the last layer's output, a learned mean of all layers'
    (Yang et al., 2021, arXiv:2105.01051), then a linear layer and pooling over time; nothing is
    masked when it is fine-tuned; LayerDrop draws for each clip; statistics of the first
    convolution are those of the clip's own frames, however long its batch is.

    The base model's output for a clip of 3 s, 38 steps of 80 ms times 13 layers times 768,
    takes 0.76 MB in the cache of frozen backbones; with `frame_step` 1 it takes 3.0 MB; the
    large model's (25 layers times 1024) 1.9 MB and 7.6 MB.

    Args:
        shape: The corpus's clips.
        config: Arguments of `torchaudio.models.wav2vec2_model` that differ from the base model's.
        normalise_waveform: Zero mean and unit variance over a clip; what the weights expect.
        frame_step: 20 ms frames that are averaged to one step.
        units: D, of the linear layer.
        pooling: Over time: `mean` or `attention`.
    """


@register(
    "hubert",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default=_DEFAULT,
    training=_TRAINING,
    paper="Hsu et al. 2021",
    checkpoints=_checkpoints(
        "hubert",
        "facebook",
        {
            "HUBERT_BASE": "hubert-base-ls960",
            "HUBERT_LARGE": "hubert-large-ll60k",
            "HUBERT_XLARGE": "hubert-xlarge-ll60k",
            "HUBERT_ASR_LARGE": "hubert-large-ls960-ft",
            "HUBERT_ASR_XLARGE": "hubert-xlarge-ls960-ft",
        },
        (),
    ),
    from_scratch=False,
)
class HuBERT(_SelfSupervised):
    """HuBERT (Hsu et al., 2021, arXiv:2106.07447): wav2vec 2.0's network, pretrained otherwise.

    Differs from the paper: as `Wav2Vec2` does; its sizes and arguments are the same.
    """


@register(
    "wavlm",
    modality="audio",
    inputs=("audio",),
    cost=_cost,
    default=_DEFAULT,
    training=_TRAINING,
    paper="Chen et al. 2022",
    checkpoints=_checkpoints(
        "wavlm",
        "microsoft",
        {
            "WAVLM_BASE_PLUS": "wavlm-base-plus",
            "WAVLM_BASE": "wavlm-base",
            "WAVLM_LARGE": "wavlm-large",
        },
        (),
    ),
    from_scratch=False,
)
class WavLM(_SelfSupervised):
    """WavLM (Chen et al., 2022, arXiv:2110.13900): attention with gated relative positions.

    Differs from the paper: as `Wav2Vec2` does. Its sizes are the same, and its arguments but
    that `config` is of `torchaudio.models.wavlm_model`.
    """

    wavlm = True
