"""Clips made from a seed; every test has a seed and one thread, as the networks are small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from models import ClipShape

Clips = Callable[..., dict[str, Tensor]]


@pytest.fixture(autouse=True)
def seeded_on_one_thread() -> Iterator[None]:
    """Makes a test independent of those before it, and leaves torch as it was."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture()
def shape() -> ClipShape:
    """Clips with sound, pictures, saliency maps and features, of the clip and of its frames."""
    return ClipShape(
        num_classes=3,
        sample_rate_hz=16000,
        seconds=1.0,
        frames=12,
        frame_size=(60, 100),
        num_features=5,
        feature_steps=12,
        saliency_maps=True,
    )


@pytest.fixture()
def make_clips() -> Clips:
    """Noise of given lengths (in samples and in frames), zeros behind each clip's end.

    A feature sequence has a step a frame; a frame's fourth channel is its saliency map.
    """

    def make(
        samples: Sequence[int], frames: Sequence[int] | None = None, *, seed: int = 0
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        frames = [12] * len(samples) if frames is None else frames
        count = len(samples)
        batch = {
            "audio": torch.randn(count, max(samples), generator=generator) * 0.1,
            "audio_lengths": torch.tensor(samples),
            "video": torch.randint(
                0, 256, (count, max(frames), 60, 100, 4), generator=generator, dtype=torch.uint8
            ),
            "video_lengths": torch.tensor(frames),
            "features": torch.randn(count, 5, generator=generator),
            "feature_sequence": torch.randn(count, max(frames), 5, generator=generator),
            "feature_sequence_lengths": torch.tensor(frames),
        }
        for clip in range(count):
            batch["audio"][clip, samples[clip] :] = 0
            for name in ("video", "feature_sequence"):
                batch[name][clip, frames[clip] :] = 0
        return batch

    return make
