"""Milliseconds a training step in float32 and bfloat16, plain and channels-last, and the front end's share.

`python -m benchmarks.precision [--repeats N]`
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.common import arguments, machine, seconds
from models import ClipShape, build_expert
from models.build import arrange_memory
from models.registry import architectures

BATCH = 32
SHAPE = ClipShape(num_classes=8, sample_rate_hz=16_000, seconds=3.0, frames=20, num_features=35)


def main() -> None:
    """One row an architecture that convolves."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(2)
    print(f"{machine()}; batch {BATCH}, clips of {SHAPE.seconds:g} s")
    print(
        f"{'':22}{'float32':>10}{'+ ch.last':>10}{'bfloat16':>10}{'+ ch.last':>10}{'gain':>7}{'front end':>11}"
    )
    batch = {
        "audio": torch.randn(BATCH, int(SHAPE.seconds * SHAPE.sample_rate_hz)) * 0.1,
        "audio_lengths": torch.full((BATCH,), int(SHAPE.seconds * SHAPE.sample_rate_hz)),
        "video": torch.randint(
            0, 255, (BATCH, SHAPE.frames, *SHAPE.frame_size, 3), dtype=torch.uint8
        ),
        "video_lengths": torch.full((BATCH,), SHAPE.frames),
    }
    targets = torch.randint(0, SHAPE.num_classes, (BATCH,))
    for entry in architectures():
        if not entry.convolutional:
            continue
        times = []
        for precision in (torch.float32, torch.bfloat16):
            for channels_last in (False, True):
                expert = build_expert(entry.name, {}, SHAPE).train()
                if channels_last:
                    arrange_memory(expert)
                fixed = expert.preprocess(batch)

                def step() -> None:
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):  # noqa: B023
                        logits = expert.answer(fixed)  # noqa: B023
                    nn.functional.cross_entropy(logits.float(), targets).backward()

                times.append(1000 * seconds(step, min(options.repeats, 3)))
        front_end = 1000 * seconds(lambda: expert.preprocess(batch), min(options.repeats, 3))  # noqa: B023
        columns = "".join(f"{t:.0f} ms".rjust(10) for t in times)
        share = 100 * front_end / (front_end + times[3])
        print(f"{entry.name:22}{columns}{times[0] / times[3]:6.2f}x{share:9.1f} %", flush=True)


if __name__ == "__main__":
    main()
