"""What papers report on a corpus, with how it came about: beside a run's score, never as a target."""

from __future__ import annotations

from dataclasses import dataclass


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


_LUNA = "Luna-Jiménez et al. 2021"
_FOLLOW_UP = "Luna-Jiménez et al. 2022"
_LUNA_FOLDS = "the five speaker folds of ravdess-luna5"
_FOLLOW_UP_FOLDS = "five speaker folds, by the same authors"
_PRETRAINED = "pretrained on other corpora; sees the video"
_TEST_FOLD = "checkpoints chosen on the test fold (authors' code)"
_SINGH = "Singh & Fang 2020"
_CLIP_SPLIT = "clips split at random, 80/20: the same speakers on both sides"
_BEST = "best checkpoint on the test clips (authors' code)"
_NO_VIDEO = "its video is a crop of the spectrogram"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "ravdess": (
        Published(_LUNA, "fusion: logistic regression on posteriors", 0.8008, 8, _LUNA_FOLDS, _PRETRAINED),
        Published(_LUNA, "audio: CNN-14, fine-tuned", 0.7658, 8, _LUNA_FOLDS, "pretrained on AudioSet"),
        Published(_LUNA, "video: guided spatial transformer", 0.5708, 8, _LUNA_FOLDS, _PRETRAINED),
        Published(
            _FOLLOW_UP, "fusion: wav2vec2 and action units", 0.8670, 8, _FOLLOW_UP_FOLDS,
            f"fusion fitted on in-sample posteriors; {_TEST_FOLD}: an upper figure",
        ),
        Published(_FOLLOW_UP, "audio: wav2vec2-xlsr", 0.8182, 8, _FOLLOW_UP_FOLDS, f"pretrained; {_TEST_FOLD}"),
        Published(_FOLLOW_UP, "video: LSTM on action units", 0.6213, 8, _FOLLOW_UP_FOLDS, _TEST_FOLD),
    ),
    "iemocap": (
        Published(_SINGH, "audio: CNN+RNN", 0.5400, 4, _CLIP_SPLIT, _BEST),
        Published(_SINGH, "both: CNN+RNN+3DCNN", 0.5194, 4, _CLIP_SPLIT, f"{_BEST}; {_NO_VIDEO}"),
        Published(_SINGH, "audio: CNN+RNN", 0.7025, 3, _CLIP_SPLIT, _BEST),
        Published(
            _SINGH, "both: CNN+RNN+3DCNN", 0.7175, 3, _CLIP_SPLIT,
            f"{_BEST}: the last epoch's gives 63.67; {_NO_VIDEO}",
        ),
    ),
}  # fmt: skip


def published_on(corpus: str, classes: int, metric: str) -> tuple[Published, ...]:
    """Figures of the same corpus and number of classes, and of accuracy as they are."""
    if metric != "accuracy":
        return ()
    return tuple(one for one in PUBLISHED.get(corpus, ()) if one.classes == classes)
