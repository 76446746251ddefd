"""Speech transformers in the Hugging Face layout: their configuration and tensors as torchaudio's.

A folder holds `config.json`, `model.safetensors` (or `pytorch_model.bin`), and perhaps
`preprocessor_config.json`. What torchaudio's own `import_huggingface_model` does to a model in
memory is done here to files, so that nothing of Hugging Face needs to be installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.pretrained import read_config
from models.registry import ModelError, Settings

_NAMES = {
    "conv_bias": "extractor_conv_bias",
    "hidden_size": "encoder_embed_dim",
    "feat_proj_dropout": "encoder_projection_dropout",
    "num_conv_pos_embeddings": "encoder_pos_conv_kernel",
    "num_conv_pos_embedding_groups": "encoder_pos_conv_groups",
    "num_hidden_layers": "encoder_num_layers",
    "num_attention_heads": "encoder_num_heads",
    "attention_dropout": "encoder_attention_dropout",
    "intermediate_size": "encoder_ff_interm_features",
    "activation_dropout": "encoder_ff_interm_dropout",
    "hidden_dropout": "encoder_dropout",
    "do_stable_layer_norm": "encoder_layer_norm_first",
    "layerdrop": "encoder_layer_drop",
}
_WAVLM_NAMES = {
    "num_buckets": "encoder_num_buckets",
    "max_bucket_distance": "encoder_max_distance",
}
_ONLY: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "adapter_attn_dim": None,
    "conv_pos_batch_norm": False,
    "feat_proj_layer_norm": True,
}
"""Settings that torchaudio's networks can have, and their value where a configuration is silent."""

_PREFIXES = ("wav2vec2.", "hubert.", "wavlm.")
_TASK = (
    "masked_spec_embed",
    "lm_head.",
    "quantizer.",
    "project_hid.",
    "project_q.",
    "projector.",
    "classifier.",
    "layer_weights",
)


def read_settings(folder: Path, model_type: str) -> Settings:
    """The constructor's settings for the weights in a folder.

    What the files do not say is as in the base model.

    Args:
        folder: In the Hugging Face layout.
        model_type: wav2vec2, hubert or wavlm; what `config.json` must name.

    Raises:
        ModelError: An unreadable configuration, of another type, or of a network that
            torchaudio has not.
    """
    file, given = folder / "config.json", read_config(folder)
    if given.get("model_type") != model_type:
        raise ModelError(
            f"'{file}' is of a model of type '{given.get('model_type')}'; this needs '{model_type}'."
        )
    for key, only in _ONLY.items():
        if given.get(key, only) != only:
            raise ModelError(f"'{file}' has {key}={given[key]!r}; only {only!r} can be built.")
    names = _NAMES | (_WAVLM_NAMES if model_type == "wavlm" else {})
    config = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    norm = given.get("feat_extract_norm", "group")
    config["extractor_mode"] = f"{norm}_norm"
    if layers := _convolutions(file, given):
        config["extractor_conv_layer_config"] = layers
    return {
        "config": config,
        "normalise_waveform": _normalises(folder, default=norm == "layer"),
    }


def _convolutions(file: Path, given: Mapping[str, Any]) -> list[list[int]]:
    """[channels, kernel, stride] of each; none where the configuration is silent."""
    parts = [given.get(f"conv_{part}", []) for part in ("dim", "kernel", "stride")]
    if not all(isinstance(part, list) for part in parts) or len({len(p) for p in parts}) > 1:
        raise ModelError(f"'{file}': conv_dim, conv_kernel and conv_stride must be lists as long.")
    return [list(one) for one in zip(*parts, strict=True)]


def _normalises(folder: Path, *, default: bool) -> bool:
    """Whether the weights expect waveforms of zero mean and unit variance."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return default
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("do_normalize", default))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"'{file}' cannot be read: {error}") from error


def rename_tensors(state: Mapping[str, Tensor], *, wavlm: bool) -> dict[str, Tensor]:
    """Tensors under torchaudio's names.

    Drops the original task's head, quantiser and mask embedding. A name that is none of the
    layout's stays as it is, for the loader to refuse.
    """
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in state)), "")
    named: dict[str, Tensor] = {}
    for key, x in state.items():
        if not key.startswith(prefix):  # beside the encoder lies only a task's own
            continue
        name = key.removeprefix(prefix)
        if name.startswith(_TASK):
            continue
        if name.startswith("encoder."):
            name = f"encoder.transformer.{name.removeprefix('encoder.')}"
        elif name.startswith("feature_projection."):
            name = f"encoder.{name}"
        named[name] = x
    return _join_projections(named) if wavlm else named


def _join_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """WavLM's query, key and value as one, as `nn.MultiheadAttention` has them."""
    joined: dict[str, Tensor] = {}
    for key, x in state.items():
        layer, found, rest = key.partition(".attention.")
        inner = f"{layer}.attention.attention."
        if found and rest.startswith("out_proj."):
            joined[inner + rest] = x
        elif found and rest in ("q_proj.weight", "q_proj.bias"):
            kind = rest.removeprefix("q_proj.")
            parts = [state.get(f"{layer}.attention.{part}_proj.{kind}") for part in "qkv"]
            joined[f"{inner}in_proj_{kind}"] = torch.cat([p for p in parts if p is not None])
        elif not found or not rest.startswith(("k_proj.", "v_proj.")):
            joined[key] = x
    return joined
