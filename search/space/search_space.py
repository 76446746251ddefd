"""The whole conditional search space, on one page, define-by-run.

A parameter is called `architecture.argument`, the constructor's own argument name, so that
one setting can be grepped from here to the network. Early fusion's parts take their
known-good settings; which parts, how they are joined and how they train together is searched.
"""

from __future__ import annotations

from typing import Any

from search.space.domains import Choice, Condition, Range, Space
from search.trial_config import OPTIMIZERS, SCHEDULES, TrainSettings

# Everything about training that is not in every architecture's core: searched where the preset
# has the trials for it. A key `setting@variant` is that setting, with a range of its own.
ADAM: Condition = {"optimizer": ("adamw", "adam_amsgrad")}
_SGD: Condition = {"optimizer": ("sgd_nesterov",)}

RECIPE: Space = {
    "optimizer": Choice(OPTIMIZERS),
    "learning_rate@sgd": Range(3e-3, 0.3, log=True, when=_SGD),
    "weight_decay@sgd": Range(1e-5, 1e-2, log=True, when=_SGD),
    "schedule": Choice(tuple(name for name in SCHEDULES if name != "constant")),
    "averaging": Choice(("none", "ema", "swa")),
    "gradient_clip": Choice((5.0, 1.0)),
    "focal_gamma": Choice((0.0, 1.0, 2.0)),
    "class_balance": Choice((0.0, 0.99, 0.999)),
    "batch_size": Choice((16, 32, 64)),
}

TRAINED_ON_AUDIO: Condition = {"transfer": ("scratch", "finetune")}
"""A frozen backbone hears and sees every clip once, as it was recorded, and one way for all trials."""

AUDIO_RECIPE: Space = {
    "noise_removal": Choice((0.0, 0.5, 0.8), when=TRAINED_ON_AUDIO),
}

WITHOUT_NOISE_REMOVAL: Condition = {"noise_removal": (0.0,)}
"""Where noise is removed waveforms stay as recorded, so that it is removed once a clip and cached."""

WAVEFORM_RECIPE: Space = {
    "noise": Choice((0.0, 0.3), when=TRAINED_ON_AUDIO),
    "reverberation": Choice((0.0, 0.3), when=TRAINED_ON_AUDIO),
    "speed_perturbation": Choice((0.0, 0.1), when=TRAINED_ON_AUDIO),
    "pitch_perturbation": Choice((0.0, 1.0, 2.0), when=TRAINED_ON_AUDIO),
}
"""Settings that run the front end anew in every step: not for one that takes longer than all the rest,
nor together with noise removal, which would run in every step as well."""

VIDEO_RECIPE: Space = {
    "spatial_crop": Choice((0.0, 0.1, 0.2), when=TRAINED_ON_AUDIO),
    "colour_jitter": Choice((0.0, 0.2, 0.4), when=TRAINED_ON_AUDIO),
}

EARLY: Space = {
    "modality_dropout": Choice((0.0, 0.1, 0.3)),
    "alone_share": Choice((0.0, 0.25)),  # joint for as long before it is first judged
    "epochs": Choice((15, 30, 40)),
    "learning_rate": Range(3e-4, 5e-3, log=True),
    "weight_decay": Range(0.01, 1.0, log=True),
    "dropout": Range(0.1, 0.6),
    "label_smoothing": Choice((0.0, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
    "spec_augment": Choice((0.0, 0.1)),
}

FINETUNE: Space = {
    "learning_rate@finetune": Range(1e-5, 1e-3, log=True, when={"transfer": ("finetune",)}),
    "layer_decay": Choice((1.0, 0.9, 0.75), when={"transfer": ("finetune",)}),
    "unfreeze_share": Choice((0.0, 0.3), when={"transfer": ("finetune",)}),
}

BARE: dict[str, dict[str, dict[str, Any]]] = {
    "joint_lstm": {
        "waveform_cnn_lstm": {"recurrent_units": 0},
        "resnet_lstm": {"recurrent_units": 0},
    }
}
"""Parts that a fusion joins in front of their own recurrence."""

DEFAULTS: dict[str, Any] = {
    "transfer": "scratch",
    "noise_removal": 0.0,
    **TrainSettings().__dict__,
}
"""Values that a condition uses where a setting is not searched."""

_CNN_TRAINING: Space = {
    "epochs": Choice((20, 30, 50)),
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "weight_decay": Range(1e-3, 0.3, log=True),
    "dropout": Range(0.1, 0.5),
    "label_smoothing": Choice((0.0, 0.05, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
    "spec_augment": Choice((0.0, 0.1, 0.2)),
}

OF_CLASSES: dict[str, Any] = {
    "label_smoothing": 0.0,
    "focal_gamma": 0.0,
    "class_balance": 0.0,
    "mixup": 0.0,
}
"""Settings with a meaning for classes alone; values for regression, where they are not searched."""

OF_WHOLE_CLIPS: dict[str, Any] = {
    "trim_db": 0.0,
    "crop_seconds": 0.0,
    "speed_perturbation": 0.0,
}
"""Settings that would shift a clip's steps against its trace."""

USUAL_DELAY = 2.0
"""Seconds that raters are late, as a first guess."""

_SCRATCH: Condition = {"transfer": ("scratch",)}
"""Condition for settings that pretrained weights decide."""

_SPEECH: Space = {
    "units": Choice((128, 256, 512)),
    "pooling": Choice(("mean", "attention")),
    "epochs": Choice((10, 20, 40)),
    "learning_rate": Range(3e-4, 5e-3, log=True),
    "weight_decay": Range(1e-3, 0.1, log=True),
    "dropout": Range(0.0, 0.5),
    "label_smoothing": Choice((0.0, 0.1)),
    "mixup": Choice((0.0, 0.2, 0.4)),
}

_KINETICS: Space = {
    "frames": Choice((8, 16), when=TRAINED_ON_AUDIO),
    "size": Choice((64, 80, 112), when=TRAINED_ON_AUDIO),
    "stages": Choice((3, 4), when=TRAINED_ON_AUDIO),
    "pooling": Choice(("mean", "mean_max")),
    "epochs": Choice((10, 20, 30)),
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "weight_decay": Range(0.01, 0.3, log=True),
    "dropout": Range(0.1, 0.6),
    "label_smoothing": Choice((0.0, 0.1)),
    "mixup": Choice((0.0, 0.2)),
}

SPACE: dict[str, Space] = {
    # audio
    "functionals": {
        "hidden_units": Choice((0, 128, 256, 512)),
        "trim_db": Choice((15.0, 20.0, 25.0, 30.0)),
        "epochs": Choice((40, 60, 100)),
        "learning_rate": Range(5e-4, 5e-3, log=True),
        "weight_decay": Range(0.1, 4.0, log=True),
        "dropout": Range(0.2, 0.7),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4, 0.8)),
    },
    "logmel_resnet": {
        "num_mels": Choice((48, 64, 80)),
        "width": Choice((12, 16, 24)),
        "recurrent_units": Choice((0, 32)),
        "trim_db": Choice((30.0, 45.0)),
        "range_db": Choice((60.0, 70.0, 80.0)),
        "epochs": Choice((25, 30, 40)),
        "learning_rate": Range(1e-3, 6e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.2, 0.5),
        "label_smoothing": Choice((0.05, 0.1)),
        "mixup": Choice((0.0, 0.2)),
        "spec_augment": Choice((0.0, 0.05)),
        "speed_perturbation": Choice((0.0, 0.1)),
        "crop_seconds": Choice((0.8, 1.0, 1.5)),
    },
    "spectrogram_cnn": {
        **_CNN_TRAINING,
        "crop_seconds": Choice((2.0, 3.0)),
        "num_bins": Choice((100, 200)),
    },
    "spectrogram_cnn_rnn": {
        **_CNN_TRAINING,
        "crop_seconds": Choice((2.0, 3.0)),
        "num_bins": Choice((100, 200)),
        "one_step": Choice((False, True)),
    },
    "spectrogram_cnn_lstm": {
        **_CNN_TRAINING,
        "crop_seconds": Choice((2.0, 3.0)),
        "num_bins": Choice((100, 200)),
        "one_step": Choice((False, True)),
        "epochs": Choice((20, 30)),
    },
    "cnn14": {
        "hidden_units": Choice((0, 256, 512)),
        "rate_hz": Choice((16000, 32000), when=_SCRATCH),
        "epochs": Choice((15, 20, 30)),
        "learning_rate": Range(1e-4, 3e-3, log=True),
        "weight_decay": Range(1e-3, 0.1, log=True),
        "dropout": Range(0.2, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
        "spec_augment": Choice((0.0, 0.1, 0.2), when=TRAINED_ON_AUDIO),
        "crop_seconds": Choice((0.0, 2.0, 3.0), when=TRAINED_ON_AUDIO),
    },
    "alexnet": {
        "hidden_units": Choice((0, 256)),
        "num_mels": Choice((64, 128), when=TRAINED_ON_AUDIO),
        "colours": Choice((False, True), when=TRAINED_ON_AUDIO),
        "trim_db": Choice((0.0, 45.0), when=TRAINED_ON_AUDIO),
        "epochs": Choice((15, 20, 30)),
        "learning_rate": Range(5e-5, 2e-3, log=True),
        "weight_decay": Range(1e-3, 0.1, log=True),
        "dropout": Range(0.2, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
        "spec_augment": Choice((0.0, 0.1), when=TRAINED_ON_AUDIO),
    },
    "waveform_cnn_lstm": {
        "variant": Choice(("code", "paper")),
        "further_filters": Choice((40, 400)),
        "recurrent_units": Choice((64, 128, 256)),
        "waveform_dropout": Choice((0.0, 0.5)),
        "crop_seconds": Choice((1.0, 2.0, 3.0)),
        "epochs": Choice((20, 40, 60)),
        "learning_rate": Range(1e-4, 3e-3, log=True),
        "weight_decay": Range(1e-3, 0.1, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "residual_lstm": {
        "num_mels": Choice((48, 64, 80)),
        "stack": Choice((3, 4, 8)),
        "units": Choice((32, 48, 64)),
        "layers": Choice((2, 3)),
        "heads": Choice((2, 4)),
        "layer_dropout": Choice((0.1, 0.2, 0.4)),
        "trim_db": Choice((30.0, 45.0)),
        "epochs": Choice((25, 40, 60)),
        "learning_rate": Range(5e-4, 5e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.2, 0.5),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
        "spec_augment": Choice((0.0, 0.1)),
        "speed_perturbation": Choice((0.0, 0.1)),
    },
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "wavlm": _SPEECH,
    # video
    "action_units": {
        "hidden_units": Choice((0, 80, 128, 256)),
        "epochs": Choice((30, 40, 60)),
        "learning_rate": Range(5e-4, 2e-2, log=True),
        "weight_decay": Range(0.01, 1.0, log=True),
        "dropout": Range(0.1, 0.7),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
    },
    "cnn3d": {
        "frames": Choice((10, 16, 20)),
        "height": Choice((46, 60)),
        "width": Choice((76, 100)),
        "epochs": Choice((16, 24, 40)),
        "learning_rate": Range(1e-4, 2e-3, log=True),
        "weight_decay": Range(1e-3, 0.3, log=True),
        "dropout": Range(0.1, 0.5),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "frame_cnn": {
        "frames": Choice((8, 12)),
        "grey": Choice((True, False)),
        "width": Choice((12, 16, 24)),
        "epochs": Choice((20, 30, 50)),
        "learning_rate": Range(5e-4, 8e-3, log=True),
        "weight_decay": Range(0.01, 0.5, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2, 0.4)),
    },
    "action_unit_lstm": {
        "units": Choice((50, 150, 200, 300)),
        "recurrent_dropout": Choice((0.0, 0.3, 0.5)),
        "epochs": Choice((30, 60, 100)),
        "learning_rate": Range(3e-4, 3e-3, log=True),
        "weight_decay": Range(0.01, 0.5, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "spatial_transformer": {
        "guide": Choice(("spectral", "none"), when=TRAINED_ON_AUDIO),
        "frames": Choice((8, 16, 32), when=TRAINED_ON_AUDIO),
        "scaling": Choice(("clip", "unit"), when=TRAINED_ON_AUDIO),
        "frame_values": Choice((50, 810), when=TRAINED_ON_AUDIO),
        "units": Choice((50, 150, 300)),
        "recurrent_dropout": Choice((0.0, 0.3, 0.5)),
        "epochs": Choice((20, 40, 80)),
        "learning_rate": Range(3e-4, 3e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "resnet_lstm": {
        "depth": Choice((18, 34, 50), when=_SCRATCH),
        "stages": Choice((3, 4), when=TRAINED_ON_AUDIO),
        "frames": Choice((4, 8, 16), when=TRAINED_ON_AUDIO),
        "size": Choice((64, 96), when=TRAINED_ON_AUDIO),
        "scaling": Choice(("unit", "imagenet", "clip"), when=TRAINED_ON_AUDIO),
        "recurrent_units": Choice((64, 128, 256)),
        "bidirectional": Choice((False, True)),
        "epochs": Choice((10, 20, 30)),
        "learning_rate": Range(1e-4, 3e-3, log=True),
        "weight_decay": Range(0.01, 0.3, log=True),
        "dropout": Range(0.1, 0.6),
        "label_smoothing": Choice((0.0, 0.1)),
        "mixup": Choice((0.0, 0.2)),
    },
    "r3d_18": _KINETICS,
    "mc3_18": _KINETICS,
    "r2plus1d_18": _KINETICS,
    "s3d": _KINETICS,
    "swin3d_t": _KINETICS,
    # early fusion
    "concatenation": EARLY,
    "gated": {**EARLY, "dim": Choice((32, 64, 128))},
    "bilinear": {**EARLY, "dim": Choice((32, 64, 128)), "rank": Choice((2, 4, 8))},
    "cross_attention": {**EARLY, "dim": Choice((32, 64, 128)), "num_heads": Choice((2, 4))},
    "joint_lstm": {**EARLY, "units": Choice((64, 128, 256))},
}
