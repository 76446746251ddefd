"""A trial's configuration: architecture, its settings, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models import Architecture


SIDES = ("audio", "video")
"""Early fusion's parts."""

OPTIMIZERS = ("adamw", "adam_amsgrad", "sgd_nesterov")
SCHEDULES = ("cosine", "one_cycle", "plateau", "constant")
"""The last is for papers' own settings, and is not searched."""
AVERAGES = ("none", "ema", "swa")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How an expert is trained.

    Attributes:
        epochs: The whole schedule; every fold ends here, with its last weights.
        batch_size: Clips.
        optimizer: adamw; adam_amsgrad (Reddi et al., 2018; its decay is AdamW's too); sgd_nesterov
            (momentum 0.9, decay in the gradient).
        learning_rate: The schedule's peak.
        schedule: cosine to 0 after the warm-up; one_cycle (Smith & Topin, 2018, without their
            cycle of momentum): a twenty-fifth, the peak at 30 %, then a cosine to 0; plateau:
            halved when the TRAINING loss has not improved for three epochs (a held-out one would
            be a leak); constant, without a warm-up.
        warmup_share: Of the schedule, in which the rate rises linearly (cosine, plateau).
        weight_decay: Of matrices; biases and normalisation are not decayed.
        gradient_clip: Largest norm of the gradient.
        averaging: What is predicted with: none, the last weights; ema, their exponential
            average; swa, the mean over the epochs of the last quarter (Izmailov et al., 2018, who
            keep the rate up and count batch statistics anew: here the schedule is as chosen,
            and the statistics are averaged as the weights are).
        dropout: In front of the last layer.
        label_smoothing: Share of probability spread over all classes.
        focal_gamma: γ of the focal loss (Lin et al., 2017); 0 for plain cross-entropy.
        class_balance: β of class-balanced weights (Cui et al., 2019), counted on the training
            side; 0 for none.
        mixup: α of Beta(α, α); 0 for none.
        spec_augment: Longest time mask as a share of the clip, and of the bands; 0 for none.
        speed_perturbation: Largest deviation from normal speed, such as 0.1; 0 for none.
        pitch_perturbation: Largest shift in semitones; 0 for none.
        noise: Share of clips that get noise 10 to 30 dB below their level; 0 for none.
        reverberation: Share of clips that are put into a room; 0 for none.
        crop_seconds: Training sees a random part of at most this length; 0 for all.
        spatial_crop: Most that is cut off the frames' height and width; 0 for none.
        colour_jitter: Most that contrast, saturation and brightness change; 0 for none.
        layer_decay: Factor on the learning rate for each stage of a fine-tuned backbone, from
            its last to its first (discriminative rates; Howard & Ruder, 2018).
        unfreeze_share: Of the schedule, over which those stages thaw, last to first; 0: at once.
        label_delay: Seconds by which raters of traces are late: a step's target is what they said
            so much later, and what is predicted is told so much later.
        alone_share: Of early fusion's schedule, at its start, in which each part trains alone
            with a classifier of its own, as Tzirakis et al. (2017) do; then both train jointly.
    """

    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_share: float = 0.1
    weight_decay: float = 0.02
    gradient_clip: float = 5.0
    averaging: str = "none"
    dropout: float = 0.2
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_balance: float = 0.0
    mixup: float = 0.0
    spec_augment: float = 0.0
    speed_perturbation: float = 0.0
    pitch_perturbation: float = 0.0
    noise: float = 0.0
    reverberation: float = 0.0
    crop_seconds: float = 0.0
    spatial_crop: float = 0.0
    colour_jitter: float = 0.0
    layer_decay: float = 1.0
    unfreeze_share: float = 0.0
    alone_share: float = 0.0
    label_delay: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting, once."""
        for name in ("epochs", "batch_size", "learning_rate", "gradient_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        for name in (
            "focal_gamma",
            "mixup",
            "pitch_perturbation",
            "crop_seconds",
            "weight_decay",
            "label_delay",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        for name in ("noise", "reverberation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}.")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} '{getattr(self, name)}'. Known: {', '.join(known)}."
                )

    @property
    def changes_waveforms(self) -> bool:
        """Whether training hears other waveforms than those whose front end is cached."""
        changed = (self.speed_perturbation, self.pitch_perturbation, self.noise, self.reverberation)
        return any(changed)


_CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "averaging": AVERAGES}
_SHARES = (
    "dropout",
    "label_smoothing",
    "class_balance",
    "spec_augment",
    "speed_perturbation",
    "spatial_crop",
    "colour_jitter",
    "warmup_share",
    "unfreeze_share",
    "alone_share",
)


@dataclass(frozen=True)
class TrialConfig:
    """One configuration: architecture, its settings, and how it is trained."""

    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    training: TrainSettings = field(default_factory=TrainSettings)

    @staticmethod
    def of(
        architecture: str, settings: Mapping[str, Any], training: Mapping[str, Any]
    ) -> TrialConfig:
        """Fills what is missing with the architecture's known-good settings."""
        entry = _architecture(architecture)
        known = [f.name for f in fields(TrainSettings)]
        unknown = [key for key in training if key not in known]
        if unknown:
            raise ValueError(f"Unknown training setting '{unknown[0]}'. Known: {', '.join(known)}.")
        return TrialConfig(
            architecture,
            {**entry.default, **settings},
            TrainSettings(**{**entry.training, **training}),
        )

    @property
    def parts(self) -> dict[str, str]:
        """Modality → architecture; early fusion has one of each."""
        entry = _architecture(self.architecture)
        if entry.modality != "early":
            return {entry.modality: self.architecture}
        return self._sides

    @property
    def _sides(self) -> dict[str, str]:
        """Early fusion's parts; empty for any other architecture."""
        given = {side: self.settings[side] for side in SIDES if side in self.settings}
        return {side: str(part["architecture"]) for side, part in given.items()}

    @property
    def title(self) -> str:
        """`logmel_resnet`, `cnn14 frozen`, or of early fusion `functionals+cnn3d`, `gated(…+…)`."""
        if sides := "+".join(self._sides.values()):
            plain = self.architecture == "concatenation"
            return sides if plain else f"{self.architecture}({sides})"
        mode = self.settings.get("transfer", "scratch")
        return self.architecture if mode == "scratch" else f"{self.architecture} {mode}"

    @property
    def cost_key(self) -> str:
        """Return the key of the measured cost of a training step (`search.space.step_cost.Cost`)."""
        mode = self.settings.get("transfer")
        own = f"{self.architecture} {mode}" if mode else self.architecture
        return "+".join(self._sides.values()) or own

    @property
    def modes(self) -> set[str]:
        """How pretrained backbones are used, frozen or finetune; empty without any."""
        each = [self.settings, *(self.settings.get(side, {}).get("settings", {}) for side in SIDES)]
        return {str(own["transfer"]) for own in each if own.get("checkpoint")}

    def crop_seconds(self, kind: str) -> float:
        """How much of a clip training sees: the plan's, or what early fusion's part is known good with.

        A fusion over time sees all of it: the streams of a part and of the whole do not lie
        side by side.
        """
        if getattr(_architecture(self.architecture).build, "over_time", False):
            return 0.0
        part = self.settings.get(kind)
        if self.training.crop_seconds or not isinstance(part, Mapping):
            return self.training.crop_seconds
        return float(_architecture(part["architecture"]).training.get("crop_seconds", 0.0))

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> TrialConfig:
        """Rebuilds a plan that was sent to a worker or stored in a run."""
        return TrialConfig(
            document["architecture"],
            dict(document["settings"]),
            TrainSettings(**document["training"]),
        )


def _architecture(name: str) -> Architecture:
    from models import get_architecture  # torch takes seconds, which whoever passes a plan on saves

    return get_architecture(name)
