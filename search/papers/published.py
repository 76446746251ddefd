"""The papers: their figures with how these came about, and their networks as they trained them.

The figures stand beside a run's score, never as a target. `search.run --reproduce PAPER` trains a
paper's networks as it describes them, nothing searched, and scores them on unknown speakers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ensembles.fusion.logistic import Scaling


@dataclass(frozen=True)
class Published:
    """One figure of a paper.

    Attributes:
        paper: Authors and year.
        what: The network or fusion.
        value: Accuracy, a share of 1.
        classes: How many it tells apart.
        protocol: What was held out.
        saw: What it saw that a score on unknown speakers must not see, in a few words.
    """

    paper: str
    what: str
    value: float
    classes: int
    protocol: str
    saw: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network as a paper trained it.

    Attributes:
        modality: audio, video or early.
        architecture: Ours.
        published: Number of classes → accuracy, a share of 1; of traces, dimension → concordance.
        saw: As `Published`'s.
        transfer: frozen or finetune, where the figure rests on pretrained weights.
        needs_weights: Whether it is left out without them, or starts from random ones.
        weights: Part of the name of the weights' file that the paper took, where several may be there.
        settings: Of the network.
        training: Of its training; what is not named is as in `_PLAIN`.
        differs: From the paper, in a few words.
    """

    modality: str
    architecture: str
    published: Mapping[int | str, float]
    saw: str
    transfer: str | None = None
    needs_weights: bool = True
    weights: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


@dataclass(frozen=True, kw_only=True)
class PosteriorFusion:
    """Logistic regression (C = 1) on the posteriors of some of a paper's networks.

    Attributes:
        members: Labels of settings.
        scaling: Of its inputs, as `ensembles.fusion.logistic.LogisticFusion`'s.
        published: As `Setting`'s.
        saw: As `Published`'s.
        differs: As `Setting`'s.
    """

    members: tuple[str, ...]
    scaling: Scaling
    published: Mapping[int | str, float]
    saw: str
    differs: str = "fitted on posteriors of clips that its networks were not trained on"


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper's figures and settings.

    Attributes:
        authors: And the year.
        corpus: Of its figures.
        held_out: Its protocol.
        flaw: Of its protocol, and what is done here instead.
        classes: Labels that are kept, unless `--classes` says otherwise; empty for all.
        protocol: How speakers are split here; None for the corpus's own.
        settings: Label → network.
        fusions: Label → fusion of their posteriors.
        metric: That its figures are of.
    """

    authors: str
    corpus: str
    held_out: str
    flaw: str
    classes: tuple[str, ...] = ()
    protocol: str | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fusions: Mapping[str, PosteriorFusion] = field(default_factory=dict)
    metric: str = "accuracy"

    @property
    def rows(self) -> dict[str, Setting | PosteriorFusion]:
        """Label → network or fusion: everything that a figure was published of."""
        return {**self.settings, **self.fusions}


_PLAIN: dict[str, Any] = {
    "schedule": "constant",
    "weight_decay": 0.0,  # with which `adamw` is Adam
    "gradient_clip": 1e9,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "spec_augment": 0.0,
    "speed_perturbation": 0.0,
    "crop_seconds": 0.0,
}

_SINGH: dict[str, Any] = {**_PLAIN, "batch_size": 64, "learning_rate": 1e-4}
_ONE_STEP = {"one_step": True, "crop_seconds": 3.0, "num_bins": 200}
_LUNA: dict[str, Any] = {**_PLAIN, "epochs": 30, "batch_size": 32, "learning_rate": 1e-4}
_SEQUENCES: dict[str, Any] = {
    **_PLAIN, "epochs": 60, "batch_size": 64, "learning_rate": 1e-3, "gradient_clip": 1.0, "class_balance": 0.99,
}  # fmt: skip

_TZIRAKIS: dict[str, Any] = {
    **_PLAIN, "epochs": 30, "batch_size": 16, "learning_rate": 1e-4, "gradient_clip": 5.0, "label_delay": 2.0,
}  # fmt: skip
_RESNET = {"depth": 50, "frames": 150, "size": 96, "scaling": "unit", "recurrent_units": 256}
_DEVELOPMENT = "delay and post-processing chosen on the development recordings"
_NOT_PROCESSED = (
    "30 epochs in batches of 16, a delay of 2 s, not post-processed (the headline above is)"
)
_BEST = "best checkpoint on the test clips (authors' code)"
_PRETRAINED = "pretrained on other corpora"
_TEST_FOLD = "checkpoints chosen on the test fold (authors' code)"
_EPOCHS = "its epochs are not known"

PAPERS: dict[str, Paper] = {
    "singh2020": Paper(
        authors="Singh & Fang 2020",
        corpus="iemocap",
        held_out="clips split at random, 80/20: the same speakers on both sides",
        flaw="its clips were split at random, the same speakers on both sides, and its best epochs chosen on "
        "the test clips; here speakers are held out and the last epoch counts",
        classes=("happy", "angry", "sad", "neutral"),
        protocol="iemocap-loso5",
        settings={
            "audio: CNN": Setting(
                modality="audio", architecture="spectrogram_cnn", published={4: 0.5223}, saw=_BEST,
                settings={"crop_seconds": 3.0, "num_bins": 200},
                training={**_SINGH, "epochs": 60, "dropout": 0.2},
            ),
            "audio: CNN+RNN": Setting(
                modality="audio", architecture="spectrogram_cnn_rnn", published={4: 0.5400, 3: 0.7025}, saw=_BEST,
                settings=_ONE_STEP, training={**_SINGH, "epochs": 50, "dropout": 0.2},
            ),
            "audio: CNN+LSTM": Setting(
                modality="audio", architecture="spectrogram_cnn_lstm", published={4: 0.3977}, saw=_BEST,
                settings=_ONE_STEP, training={**_SINGH, "epochs": 20, "dropout": 0.5},
            ),
            "both: CNN+RNN+3DCNN": Setting(
                modality="early", architecture="concatenation", published={4: 0.5194, 3: 0.7175},
                saw=f"{_BEST}, of three classes the last epoch's gives 63.67; its video is a crop of the spectrogram",
                settings={
                    "audio": {"architecture": "spectrogram_cnn_rnn", "settings": _ONE_STEP},
                    "video": {
                        "architecture": "cnn3d", "settings": {"frames": 20, "height": 60, "width": 100},
                    },
                },
                training={**_SINGH, "epochs": 50},
                differs="sees the video",
            ),
        },
    ),
    "tzirakis2017": Paper(
        authors="Tzirakis et al. 2017",
        corpus="recola",
        held_out="the recordings of AVEC's test set",
        flaw="the labels of its test recordings were never published, and its label delay and post-processing were "
        "chosen on the development recordings; here every labelled recording is held out in turn, and its "
        "networks are trained as they are",
        protocol="recola-open-kfold",
        metric="ccc",
        settings={
            "audio: waveform CNN and LSTM": Setting(
                modality="audio", architecture="waveform_cnn_lstm", published={"arousal": 0.715}, saw=_DEVELOPMENT,
                settings={"variant": "code", "further_filters": 40, "recurrent_units": 256},
                training={**_TZIRAKIS, "dropout": 0.5}, differs=_NOT_PROCESSED,
            ),
            "video: ResNet-50 and LSTM": Setting(
                modality="video", architecture="resnet_lstm", transfer="finetune", needs_weights=False,
                published={"valence": 0.620}, saw=f"pretrained on ImageNet; {_DEVELOPMENT}",
                settings=_RESNET, training=_TZIRAKIS, differs=f"random weights unless given; {_NOT_PROCESSED}",
            ),
            "both: joint LSTM": Setting(
                modality="early", architecture="joint_lstm", published={}, saw=_DEVELOPMENT,
                settings={
                    "units": 256,
                    "audio": {
                        "architecture": "waveform_cnn_lstm",
                        "settings": {"variant": "code", "further_filters": 40, "recurrent_units": 0},
                    },
                    "video": {
                        "architecture": "resnet_lstm",
                        "settings": {**_RESNET, "recurrent_units": 0},
                    },
                },
                training={**_TZIRAKIS, "alone_share": 0.4}, differs=f"random weights; {_NOT_PROCESSED}",
            ),
        },
    ),
    "luna2021": Paper(
        authors="Luna-Jiménez et al. 2021",
        corpus="ravdess",
        held_out="the five speaker folds of ravdess-luna5",
        flaw="by which clips its epochs were chosen and its fusion fitted is not known, and its authors' next paper "
        "did both on clips that it should not have seen; here the schedule is fixed and fusion cross-fitted",
        protocol="ravdess-luna5",
        settings={
            "audio: CNN-14, fine-tuned": Setting(
                modality="audio", architecture="cnn14", transfer="finetune", published={8: 0.7658},
                saw="pretrained on AudioSet",
                training={**_LUNA, "mixup": 1.0, "spec_augment": 0.1, "dropout": 0.5}, differs=_EPOCHS,
            ),
            "audio: AlexNet, fine-tuned": Setting(
                modality="audio", architecture="alexnet", transfer="finetune", published={8: 0.6167},
                saw="pretrained on ImageNet", training=_LUNA, differs=_EPOCHS,
            ),
            "video: guided spatial transformer": Setting(
                modality="video", architecture="spatial_transformer", transfer="finetune", needs_weights=False,
                published={8: 0.5708}, saw=f"{_PRETRAINED}; sees the video", settings={"guide": "spectral"},
                training={**_SEQUENCES, "dropout": 0.3},
                differs="60 epochs of the whole; saliency computed from the frames; random weights unless given",
            ),
        },
        fusions={
            "fusion: logistic regression on posteriors": PosteriorFusion(
                members=("audio: CNN-14, fine-tuned", "video: guided spatial transformer"),
                scaling="none", published={8: 0.8008}, saw=f"{_PRETRAINED}; sees the video",
            ),
        },
    ),
    "luna2022": Paper(
        authors="Luna-Jiménez et al. 2022",
        corpus="ravdess",
        held_out="five speaker folds, by the same authors",
        flaw="its checkpoints were chosen on the test fold and its fusion fitted on posteriors of clips that its "
        "networks were trained on: upper figures; here the last epoch counts and fusion is cross-fitted",
        protocol="ravdess-luna5",
        settings={
            "audio: wav2vec2-xlsr, fine-tuned": Setting(
                modality="audio", architecture="wav2vec2", transfer="finetune", weights="xls", published={8: 0.8182},
                saw=f"pretrained; {_TEST_FOLD}",
                training={**_PLAIN, "epochs": 10, "batch_size": 4, "learning_rate": 1e-4}, differs=_EPOCHS,
            ),
            "video: bi-LSTM on action units": Setting(
                modality="video", architecture="action_unit_lstm", published={8: 0.6213}, saw=_TEST_FOLD,
                settings={"units": 50, "recurrent_dropout": 0.3}, training={**_SEQUENCES, "dropout": 0.3},
                differs="60 epochs",
            ),
            "video: MLP(80) on mean action units": Setting(
                modality="video", architecture="action_units", published={8: 0.6022}, saw=_TEST_FOLD,
                settings={"hidden_units": 80},
                training={**_PLAIN, "epochs": 60, "batch_size": 64, "learning_rate": 1e-3},
                differs="60 epochs, batches of 64",
            ),
            "video: logistic regression on mean action units": Setting(
                modality="video", architecture="action_units", published={8: 0.5937}, saw=_TEST_FOLD,
                settings={"hidden_units": 0},
                training={**_PLAIN, "epochs": 60, "batch_size": 64, "learning_rate": 1e-2},
                differs="trained by gradient descent, without a penalty",
            ),
        },
        fusions={
            "fusion: wav2vec2 and action units": PosteriorFusion(
                members=(
                    "audio: wav2vec2-xlsr, fine-tuned", "video: bi-LSTM on action units",
                    "video: MLP(80) on mean action units",
                ),
                scaling="minmax", published={8: 0.8670},
                saw=f"fusion fitted on in-sample posteriors; {_TEST_FOLD}: an upper figure",
            ),
        },
    ),
}  # fmt: skip


def published_on(corpus: str, classes: int, metric: str) -> tuple[Published, ...]:
    """Figures of the same corpus and number of classes, and of accuracy as they are; best first."""
    if metric != "accuracy":
        return ()
    found = [
        Published(paper.authors, label, one.published[classes], classes, paper.held_out, one.saw)
        for paper in PAPERS.values()
        if paper.corpus == corpus
        for label, one in paper.rows.items()
        if classes in one.published
    ]
    return tuple(sorted(found, key=lambda one: (one.paper, -one.value)))
