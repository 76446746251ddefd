"""Many uploads answered at once: the whole of each and its windows, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ensembles.inference.predictor import Answer, Clip, Predictor
from ensembles.serving.app import Prediction, WindowAnswer
from ensembles.serving.decoder import Decoded
from ensembles.serving.limits import Refused

_BATCH_CLIPS = 32
_BATCH_SECONDS = 120.0
"""Seconds of audio in one batch, padding counted."""


def answer_uploads(predictor: Predictor, uploads: Sequence[Decoded]) -> list[Prediction | Refused]:
    """Predicts uploads together.

    Returns:
        A prediction or a refusal each, in order.
    """
    clips = [c for upload in uploads for c in (upload.clip, *(p.clip for p in upload.parts))]
    answers = iter(_predict(predictor, clips))
    results: list[Prediction | Refused] = []
    for upload in uploads:
        whole = next(answers)
        over_time = [
            WindowAnswer(
                start_s=round(part.start_s, 3),
                end_s=round(part.end_s, 3),
                probabilities=dict(answer.probabilities),
                error=answer.error,
            )
            for part, answer in zip(upload.parts, answers, strict=False)  # `answers` goes on
        ]
        results.append(_result(upload, whole, over_time))
    return results


def _result(upload: Decoded, whole: Answer, over_time: list[WindowAnswer]) -> Prediction | Refused:
    if whole.error:
        return Refused(422, whole.error)
    return Prediction(
        name=whole.name,
        label=whole.label,
        probabilities=dict(whole.probabilities),
        seconds=round(upload.seconds, 3),
        windows=over_time,
        experts=list(whole.experts),
        notes=list(whole.notes),
    )


def _predict(predictor: Predictor, clips: list[Clip]) -> list[Answer]:
    """In order; computed from short to long, so that little is padding."""
    order = sorted(range(len(clips)), key=lambda i: _samples(clips[i]))
    answers: dict[int, Answer] = {}
    most = int(_BATCH_SECONDS * max(predictor.artifact.sample_rate_hz, 1))
    for batch in _batches(order, [_samples(clip) for clip in clips], most):
        answers.update(zip(batch, predictor.clips(clips[i] for i in batch), strict=True))
    return [answers[i] for i in range(len(clips))]


def _batches(order: list[int], samples: list[int], most: int) -> Iterator[list[int]]:
    """Parts of `order`, which goes from short to long, of at most so many padded samples."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == _BATCH_CLIPS or (len(batch) + 1) * samples[i] > most):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _samples(clip: Clip) -> int:
    return len(clip.arrays["audio"]) if "audio" in clip.arrays else 0
