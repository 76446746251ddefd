"""Facts that a clip's source files state, beside what is decoded of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import av
import soundfile

from datasets.clips import ClipRecord, Part
from datasets.media.containers import AUDIO_SUFFIXES


def measure_sources(record: ClipRecord) -> dict[str, Any]:
    """How long a clip's pictures last, and the rate of its sound; 0 for what is not known.

    The sound's own length is that of its samples.

    Returns:
        `video_seconds` and `source_rate_hz` of a clip's entry in the index.
    """
    video_seconds, source_rate_hz = 0.0, 0
    # The files were decoded before; what says nothing of itself is no fault of the clip.
    with suppress(av.FFmpegError, ValueError, OSError, soundfile.LibsndfileError):
        if record.audio is not None and record.audio.suffix.lower() in AUDIO_SUFFIXES:
            source_rate_hz = int(soundfile.info(record.audio).samplerate)
        elif record.audio is not None and record.audio != record.video:
            with av.open(str(record.audio)) as container:
                source_rate_hz = _sample_rate(container)
        if record.video is not None:
            with av.open(str(record.video)) as container:
                if (
                    record.audio == record.video
                ):  # opened once: FFmpeg looks into a file for its streams
                    source_rate_hz = _sample_rate(container)
                video_seconds = round(_video_seconds(container, record.video_part), 3)
    return {"video_seconds": video_seconds, "source_rate_hz": source_rate_hz}


def _sample_rate(container: Any) -> int:
    return int(container.streams.audio[0].rate) if container.streams.audio else 0


def _video_seconds(container: Any, part: Part | None) -> float:
    """By the packets' time stamps: containers are often wrong about their length; none is decoded.

    Of a part of a long file only its end is compared with the container's own length.
    """
    if part is not None:
        whole = (container.duration or 0) / av.time_base
        return (min(part.end_s, whole) if whole else part.end_s) - part.start_s
    if not container.streams.video:
        return 0.0
    stream = container.streams.video[0]
    stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    if not stamps or stream.time_base is None:
        return 0.0
    last_step = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0
    return float((stamps[-1] - stamps[0] + last_step) * stream.time_base)
