"""Weights of wav2vec 2.0, HuBERT and WavLM: torchaudio's files, and the Hugging Face layout."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import BackboneEncoder, get_architecture
from models.pretrained import (
    Found,
    FrozenBackbone,
    find_checkpoints,
    load_backbone,
    sha256,
    tensor_file,
)
from models.registry import ModelError
from tests.models.tiny_speech import NAMES, build, noise, ours, shake, theirs
from tests.small import SPEECH, SPEECH_LARGE


@pytest.mark.parametrize("config", [SPEECH, SPEECH_LARGE], ids=["base", "large"])
@pytest.mark.parametrize("wavlm", [False, True], ids=["wav2vec2", "wavlm"])
def test_a_torchaudio_file_computes_what_torchaudio_computes(
    config: dict[str, Any], wavlm: bool, tmp_path: Path
) -> None:
    network, backbone = theirs(config, wavlm=wavlm), ours(config, wavlm=wavlm)
    before = "encoder.transformer.pos_conv_embed.conv."
    old = {"parametrizations.weight.original0": "weight_g"}
    old["parametrizations.weight.original1"] = "weight_v"
    state = {
        before + old[name.removeprefix(before)] if name.removeprefix(before) in old else name: x
        for name, x in network.state_dict().items()
    }
    assert {before + "weight_g", before + "weight_v", "aux.weight"} < set(state)
    torch.save(state, tmp_path / "weights.pth")
    load_backbone(backbone, tmp_path / "weights.pth")
    x, lengths = noise(5000)
    with torch.no_grad():
        expected, _ = network.extract_features(x[:, :, 0])
        last, _ = network(x[:, :, 0])  # through its last normalisation and `aux`
        states, frames = backbone.hidden_states(x, lengths)
        if config is SPEECH:
            assert len(states) == len(expected) + 1 == 3
        else:  # the last layer's is normalised once more in ours
            expected.pop()
        for wanted, got in zip(expected, states[1:], strict=False):
            torch.testing.assert_close(got[:, : int(frames)], wanted, atol=1e-4, rtol=1e-4)
        logits = network.aux(states[-1][:, : int(frames)])
        torch.testing.assert_close(logits, last, atol=1e-4, rtol=1e-4)


def published(weights: Path, name: str = "wav2vec2") -> tuple[nn.Module, dict[str, Any]]:
    """A tiny torchaudio file in a folder of weights, and it as a plan's settings name it."""
    network = theirs(SPEECH, wavlm=name == "wavlm")
    file = weights / "tiny.pth"
    torch.save(network.state_dict(), file)
    return network, Found(file.name, sha256(file), {"config": SPEECH}).to_json()


@pytest.mark.parametrize("name", NAMES)
def test_finetuning_starts_from_the_loaded_weights(name: str, tmp_path: Path) -> None:
    network, checkpoint = published(tmp_path, name)
    settings = {"transfer": "finetune", "checkpoint": checkpoint}
    encoder = build(name, settings=settings, weights=tmp_path)
    wanted = network.state_dict()
    for key, x in encoder.backbone.state_dict().items():
        assert torch.equal(x, wanted[key]), key
    encoder.train()
    x, lengths = noise(3000, 2000)
    encoder(*encoder.frontend(x[:, :, 0], lengths)).sum().backward()
    assert all(p.grad is not None for p in encoder.backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_trains_the_head_alone_on_what_the_cache_holds(name: str, tmp_path: Path) -> None:
    _, checkpoint = published(tmp_path, name)
    settings = {"transfer": "frozen", "checkpoint": checkpoint}
    frozen = build(name, settings=settings, weights=tmp_path).train()
    assert isinstance(frozen, BackboneEncoder)
    assert isinstance(frozen.frontend, FrozenBackbone)
    assert {n for n, p in frozen.named_parameters() if p.requires_grad} == {
        "layer_weights",
        "hidden.weight",
        "hidden.bias",
    }
    x, lengths = noise(3000, 2000)
    values, steps = frozen.frontend(x[:, :, 0], lengths)
    kept = values.to(torch.float16)  # what the cache stores
    assert torch.equal(kept.float(), values)
    again, _ = copy.deepcopy(frozen.frontend)(x[:, :, 0], lengths)  # the trainer computes on a copy
    assert torch.equal(again, values)
    loss = frozen(kept.float(), steps).sum()
    loss.backward()
    assert frozen.layer_weights.grad.abs().max() > 0
    assert all(p.grad is None for p in frozen.frontend.parameters())

    whole = build(name, settings={**settings, "transfer": "finetune"}, weights=tmp_path)
    head = {k: p.detach() for k, p in frozen.named_parameters() if p.requires_grad}
    whole.load_state_dict({**whole.state_dict(), **head})
    with torch.no_grad():
        expected = whole(*whole.frontend(x[:, :, 0], lengths))
        torch.testing.assert_close(frozen.eval()(values, steps), expected, atol=1e-2, rtol=1e-2)


def test_what_changes_a_cached_output_changes_its_name(tmp_path: Path) -> None:
    _, checkpoint = published(tmp_path)
    names = set()
    for further, config in [
        ({}, {}),
        ({"frame_step": 2}, {}),
        ({"normalise_waveform": True}, {}),
        ({}, {"encoder_num_heads": 4}),
    ]:
        found = {**checkpoint, "settings": {"config": {**SPEECH, **config}}}
        settings = {"transfer": "frozen", "checkpoint": found, **further}
        names.add(build(settings=settings).frontend.name)
    assert len(names) == 4
    again = {"transfer": "frozen", "checkpoint": checkpoint, "units": 4, "pooling": "attention"}
    assert build(settings=again).frontend.name in names


def folder_of(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Path:
    """A folder in the Hugging Face layout."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: x.contiguous() for name, x in state.items()}, path / "model.safetensors")
    return path


ONE_LAYER = {**SPEECH, "encoder_num_layers": 1}
DOCUMENT: dict[str, Any] = {
    "model_type": "wav2vec2",
    "architectures": ["Wav2Vec2ForSequenceClassification"],
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_dim": [8, 8, 12],
    "conv_kernel": [10, 8, 10],
    "conv_stride": [5, 8, 8],
    "conv_bias": False,
    "hidden_size": 16,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "do_stable_layer_norm": False,
    "hidden_dropout": 0.2,
    "layerdrop": 0.3,
}
# torchaudio's names → Hugging Face's (transformers 4.x), by hand.
LAYER = "encoder.transformer.layers.0"
HUGGING_FACE = {
    "feature_extractor.conv_layers.0.layer_norm.weight": "feature_extractor.conv_layers.0.layer_norm.weight",
    "feature_extractor.conv_layers.0.layer_norm.bias": "feature_extractor.conv_layers.0.layer_norm.bias",
    "feature_extractor.conv_layers.0.conv.weight": "feature_extractor.conv_layers.0.conv.weight",
    "feature_extractor.conv_layers.1.conv.weight": "feature_extractor.conv_layers.1.conv.weight",
    "feature_extractor.conv_layers.2.conv.weight": "feature_extractor.conv_layers.2.conv.weight",
    "encoder.feature_projection.layer_norm.weight": "feature_projection.layer_norm.weight",
    "encoder.feature_projection.layer_norm.bias": "feature_projection.layer_norm.bias",
    "encoder.feature_projection.projection.weight": "feature_projection.projection.weight",
    "encoder.feature_projection.projection.bias": "feature_projection.projection.bias",
    "encoder.transformer.pos_conv_embed.conv.bias": "encoder.pos_conv_embed.conv.bias",
    "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv_embed.conv.weight_g",
    "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv_embed.conv.weight_v",
    "encoder.transformer.layer_norm.weight": "encoder.layer_norm.weight",
    "encoder.transformer.layer_norm.bias": "encoder.layer_norm.bias",
    f"{LAYER}.attention.k_proj.weight": "encoder.layers.0.attention.k_proj.weight",
    f"{LAYER}.attention.k_proj.bias": "encoder.layers.0.attention.k_proj.bias",
    f"{LAYER}.attention.v_proj.weight": "encoder.layers.0.attention.v_proj.weight",
    f"{LAYER}.attention.v_proj.bias": "encoder.layers.0.attention.v_proj.bias",
    f"{LAYER}.attention.q_proj.weight": "encoder.layers.0.attention.q_proj.weight",
    f"{LAYER}.attention.q_proj.bias": "encoder.layers.0.attention.q_proj.bias",
    f"{LAYER}.attention.out_proj.weight": "encoder.layers.0.attention.out_proj.weight",
    f"{LAYER}.attention.out_proj.bias": "encoder.layers.0.attention.out_proj.bias",
    f"{LAYER}.layer_norm.weight": "encoder.layers.0.layer_norm.weight",
    f"{LAYER}.layer_norm.bias": "encoder.layers.0.layer_norm.bias",
    f"{LAYER}.feed_forward.intermediate_dense.weight": "encoder.layers.0.feed_forward.intermediate_dense.weight",
    f"{LAYER}.feed_forward.intermediate_dense.bias": "encoder.layers.0.feed_forward.intermediate_dense.bias",
    f"{LAYER}.feed_forward.output_dense.weight": "encoder.layers.0.feed_forward.output_dense.weight",
    f"{LAYER}.feed_forward.output_dense.bias": "encoder.layers.0.feed_forward.output_dense.bias",
    f"{LAYER}.final_layer_norm.weight": "encoder.layers.0.final_layer_norm.weight",
    f"{LAYER}.final_layer_norm.bias": "encoder.layers.0.final_layer_norm.bias",
}  # fmt: skip


def converted(state: Mapping[str, Tensor], *, prefix: str, new: bool = False) -> dict[str, Tensor]:
    """A tiny backbone's tensors as Hugging Face would store them, beside a classifier's."""
    renamed = {prefix + HUGGING_FACE[key]: x for key, x in state.items()}
    if new:  # how torch ≥ 2.0 names weight normalisation
        for old, now in (("weight_g", "original0"), ("weight_v", "original1")):
            x = renamed.pop(f"{prefix}encoder.pos_conv_embed.conv.{old}")
            renamed[f"{prefix}encoder.pos_conv_embed.conv.parametrizations.weight.{now}"] = x
    renamed[f"{prefix}masked_spec_embed"] = torch.zeros(16)
    if prefix:
        renamed |= {"classifier.weight": torch.zeros(3, 16), "lm_head.weight": torch.zeros(5, 16)}
    else:
        renamed |= {"quantizer.codevectors": torch.zeros(4), "project_q.bias": torch.zeros(4)}
    return renamed


@pytest.mark.parametrize("new", [False, True], ids=["weight_g", "parametrizations"])
@pytest.mark.parametrize("prefix", ["wav2vec2.", ""], ids=["with-a-head", "bare"])
def test_a_hugging_face_folder_is_found_and_loaded(prefix: str, new: bool, tmp_path: Path) -> None:
    source = ours(ONE_LAYER, wavlm=False)
    shake(source)
    state = source.state_dict()
    folder_of(tmp_path / "wav2vec2", DOCUMENT, converted(state, prefix=prefix, new=new))
    (found,) = find_checkpoints(get_architecture("wav2vec2"), tmp_path)
    assert found.file == "wav2vec2"
    assert found.settings["normalise_waveform"] is False
    assert found.settings["config"]["encoder_layer_drop"] == 0.3
    settings = {"transfer": "finetune", "checkpoint": found.to_json()}
    encoder = build(settings=settings, weights=tmp_path)
    for key, x in encoder.backbone.state_dict().items():
        assert torch.equal(x, state[key]), key


def test_wavlms_projections_are_joined_and_its_gates_found(tmp_path: Path) -> None:
    source = ours(ONE_LAYER, wavlm=True)
    shake(source)
    state = dict(source.state_dict())
    inner, plain = f"{LAYER}.attention.attention", "encoder.layers.0.attention"
    stored = {}
    for kind in ("weight", "bias"):
        joined = state.pop(f"{inner}.in_proj_{kind}")
        for number, part in enumerate("qkv"):
            stored[f"wavlm.{plain}.{part}_proj.{kind}"] = joined[16 * number : 16 * (number + 1)]
        stored[f"wavlm.{plain}.out_proj.{kind}"] = state.pop(f"{inner}.out_proj.{kind}")
        linear = f"gru_rel_pos_linear.{kind}"
        stored[f"wavlm.{plain}.{linear}"] = state.pop(f"{LAYER}.attention.{linear}")
    for name in ("gru_rel_pos_const", "rel_attn_embed.weight"):
        stored[f"wavlm.{plain}.{name}"] = state.pop(f"{LAYER}.attention.{name}")
    stored |= {f"wavlm.{HUGGING_FACE[key]}": x for key, x in state.items()}
    buckets = {"num_buckets": 320, "max_bucket_distance": 800}
    document = {**DOCUMENT, "model_type": "wavlm", **buckets}
    path = folder_of(tmp_path / "wavlm-base-plus", document, stored)
    (found,) = find_checkpoints(get_architecture("wavlm"), tmp_path)
    assert found.file == "wavlm-base-plus"
    loaded = ours(found.settings["config"], wavlm=True)
    load_backbone(loaded, path)
    for key, x in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], x), key


def test_a_folder_says_whether_waveforms_are_normalised(tmp_path: Path) -> None:
    def wanted(document: dict[str, Any], preprocessor: dict[str, Any] | None) -> bool:
        path = folder_of(tmp_path / str(len(list(tmp_path.iterdir()))) / "hubert", document, {})
        if preprocessor is not None:
            (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        (found,) = find_checkpoints(get_architecture("hubert"), path.parent)
        return bool(found.settings["normalise_waveform"])

    group = {**DOCUMENT, "model_type": "hubert"}
    layer = {**group, "feat_extract_norm": "layer"}
    assert not wanted(group, None)
    assert wanted(layer, None)
    assert wanted(group, {"do_normalize": True})
    assert not wanted(layer, {"do_normalize": False})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "hubert"}, "of a model of type 'hubert'; this needs 'wav2vec2'"),
        ({"model_type": None}, "of a model of type 'None'; this needs 'wav2vec2'"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; only 'gelu'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06; only 1e-05"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim=16; only None"),
        ({"conv_stride": [5, 8]}, "conv_dim, conv_kernel and conv_stride must be"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder_of(tmp_path / "wav2vec2", {**DOCUMENT, **change}, {})
    with pytest.raises(ModelError, match=message):
        find_checkpoints(get_architecture("wav2vec2"), tmp_path)


def test_a_broken_preprocessor_configuration_is_one_clear_error(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "wav2vec2", DOCUMENT, {})
    (path / "preprocessor_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json' cannot be read"):
        find_checkpoints(get_architecture("wav2vec2"), tmp_path)


@pytest.mark.parametrize(
    ("config", "wavlm", "message"),
    [
        (SPEECH, True, r"layers\.0\.attention\.gru_rel_pos_const is missing; .*; and \d+ more"),
        (SPEECH_LARGE, False, r"conv_layers\.0\.conv\.bias is missing"),
        ({**SPEECH, "encoder_num_layers": 3}, False, r"transformer\.layers\.2\..* is missing"),
        ({**SPEECH, "encoder_num_layers": 1}, False, r"transformer\.layers\.1\..* is unknown"),
        ({**SPEECH, "encoder_ff_interm_features": 32}, False, r"is \(24, 16\), not \(32, 16\)"),
    ],
)
def test_a_file_of_another_network_is_refused_by_its_first_tensors(
    config: dict[str, Any], wavlm: bool, message: str, tmp_path: Path
) -> None:
    torch.save(theirs(SPEECH, wavlm=False).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ModelError, match=f"of another architecture: .*{message}"):
        load_backbone(ours(config, wavlm=wavlm), tmp_path / "tiny.pth")


def transformers_model(kind: str, **settings: Any) -> Any:
    """A tiny random model of theirs; skips without transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    sizes = {k: x for k, x in DOCUMENT.items() if k not in ("model_type", "architectures")}
    config = getattr(transformers, f"{kind}Config")(
        **{**sizes, "num_hidden_layers": 3, "num_feat_extract_layers": 3, **settings}
    )
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    shake(network)
    return network


def their_states(network: Any, x: Tensor, **further: Any) -> list[Tensor]:
    """Hidden states, the last as the network returns it.

    In transformers 4 that is also the last hidden state; 5 gives it before the last
    normalisation of networks that normalise first.
    """
    with torch.no_grad():
        answer = network(x, output_hidden_states=True, **further)
    return [*answer.hidden_states[:-1], answer.last_hidden_state]


KINDS = [("Wav2Vec2", "wav2vec2"), ("Hubert", "hubert"), ("WavLM", "wavlm")]


# Every pair of a network, a normalisation of its convolutions and a place of it in its layers.
@pytest.mark.parametrize(
    ("kind", "name", "norm", "stable"),
    [
        ("Wav2Vec2", "wav2vec2", "group", False),
        ("Wav2Vec2", "wav2vec2", "layer", True),
        ("Hubert", "hubert", "group", True),
        ("Hubert", "hubert", "layer", False),
        ("WavLM", "wavlm", "group", False),
        ("WavLM", "wavlm", "layer", True),
    ],
)
def test_every_layer_is_what_transformers_computes(
    kind: str, name: str, norm: str, stable: bool, tmp_path: Path
) -> None:
    network = transformers_model(
        kind, feat_extract_norm=norm, do_stable_layer_norm=stable, conv_bias=norm == "layer"
    )
    network.save_pretrained(tmp_path / name)
    (found,) = find_checkpoints(get_architecture(name), tmp_path)
    assert found.settings["normalise_waveform"] is (norm == "layer")
    backbone = ours(found.settings["config"], wavlm=name == "wavlm")
    load_backbone(backbone, tmp_path / name)
    x, lengths = noise(40_000)
    expected = their_states(network, x[:, :, 0])
    with torch.no_grad():
        states, frames = backbone.hidden_states(x, lengths)
    assert len(states) == len(expected) == 4
    for wanted, got in zip(expected, states, strict=True):
        assert wanted.shape[1] == int(frames)
        torch.testing.assert_close(got[:, : int(frames)], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_padded_batch_is_what_transformers_makes_of_it(
    kind: str, name: str, tmp_path: Path
) -> None:
    # Layer normalisation alone: with group normalisation theirs depends on the padding.
    network = transformers_model(kind, feat_extract_norm="layer", do_stable_layer_norm=True)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    network.config.save_pretrained(tmp_path)
    settings = get_architecture(name).checkpoints[-1].read
    assert settings is not None
    backbone = ours(settings(tmp_path)["config"], wavlm=name == "wavlm")
    load_backbone(backbone, tmp_path)
    x, lengths = noise(20_000, 9000, 12_345)
    mask = (torch.arange(x.shape[1])[None] < lengths[:, None]).long()
    expected = their_states(network, x[:, :, 0], attention_mask=mask)
    with torch.no_grad():
        states, frames = backbone.hidden_states(x, lengths)
    for wanted, got in zip(expected, states, strict=True):
        for clip, count in enumerate(frames.tolist()):
            torch.testing.assert_close(
                got[clip, :count], wanted[clip, :count], atol=1e-4, rtol=1e-4
            )
    assert tensor_file(tmp_path).name == "pytorch_model.bin"
