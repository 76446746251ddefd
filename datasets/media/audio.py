"""Reads sound from files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from datasets.clips import Part
from datasets.media.containers import Media, MediaError, check_end, decoding_threads, open_media
from datasets.media.resampling import MAX_FILTER_BANK, windowed_sinc

_BLOCK_SAMPLES = 1 << 20
_SILENCE = 10 ** (-60 / 20)
"""Peak of what counts as silent: 60 dB below full scale."""
_SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU"})
_SEEKABLE_SAMPLES = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"})


def read_audio(path: Path, sample_rate_hz: int, part: Part | None = None) -> NDArray[np.int16]:
    """Decodes the sound of a file, mixes it to mono and resamples it.

    Args:
        path: A sound file, or a container with sound.
        sample_rate_hz: Of what is returned.
        part: What of the file is wanted, however long the file is; None for all of it.

    Returns:
        (L,) 16-bit samples at `sample_rate_hz`.

    Raises:
        MediaError: If the file is missing, empty, undecodable, has no sound, or is
            longer than `MAX_CLIP_SECONDS` (a clip is one utterance), or ends before the part does.
    """
    with open_media(path, part) as media:
        waveform, source_rate_hz = _seek(media) or _decode(media)
    return to_samples(waveform, source_rate_hz, sample_rate_hz)


def to_samples(
    waveform: NDArray[np.float32], source_rate_hz: int, sample_rate_hz: int
) -> NDArray[np.int16]:
    """(L,) mono sound as decoded → 16-bit samples at `sample_rate_hz`; raises MediaError."""
    if waveform.size == 0:
        raise MediaError("holds no sound")
    if not np.isfinite(waveform).all():
        raise MediaError("holds non-finite samples")
    if source_rate_hz != sample_rate_hz:
        waveform = _resample(waveform, source_rate_hz, sample_rate_hz)
    return np.asarray(np.clip(np.rint(waveform * 32768.0), -32768, 32767), np.int16)


def as_waveform(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """(L,) 16-bit samples as the networks take them; raises MediaError if they are silent."""
    waveform = samples.astype(np.float32) / 32768.0
    if np.abs(waveform).max() < _SILENCE:
        raise MediaError("is silent")
    return waveform


def stream_audio(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Decodes the sound of a file of any length piece by piece.

    Args:
        path: A sound file, or a container with sound.

    Yields:
        (L,) the next mono samples, and their rate in Hz.

    Raises:
        MediaError: As `read_audio`, but for length.
    """
    with open_media(path, any_length=True) as media:
        yield from _blocks(media)


def _decode(media: Media) -> tuple[NDArray[np.float32], int]:
    """(L,) the sound of a file or of its part, and its rate, decoded from the beginning."""
    part, blocks = media.part, []
    samples = rate_hz = 0
    for block, rate_hz in _blocks(media):
        before, samples = samples, samples + len(block)
        media.check_length(samples / rate_hz)  # a container does not say how long it is
        if part is None:
            blocks.append(block)
            continue
        first, last = round(part.start_s * rate_hz), round(part.end_s * rate_hz)
        blocks.append(block[max(0, first - before) : max(0, last - before)])
        if samples >= last:
            break
    else:
        if samples:
            check_end(samples / rate_hz, part)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate_hz


def _seek(media: Media) -> tuple[NDArray[np.float32], int] | None:
    """(L,) a part of a sound file, and its rate, without what lies before it; None where seeking may not be exact."""
    if media.part is None or not media.is_sound_file:
        return None
    file = media.sound_file()
    exact = file.format in _SEEKABLE and file.subtype in _SEEKABLE_SAMPLES and file.seekable()
    if not (exact and 0 < file.frames < 2**40):  # a streamed FLAC does not say how long it is
        return None
    rate_hz = int(file.samplerate)
    first, last = round(media.part.start_s * rate_hz), round(media.part.end_s * rate_hz)
    if last > file.frames:
        check_end(file.frames / rate_hz, media.part)
    file.seek(min(first, file.frames))
    samples = file.read(max(0, last - first), dtype="float32", always_2d=True)
    if len(samples) < min(last, file.frames) - first:
        raise MediaError("is truncated")
    return samples.mean(axis=1), rate_hz


def _blocks(media: Media) -> Iterator[tuple[NDArray[np.float32], int]]:
    """(L,) the next mono samples, and their rate."""
    return _file_blocks(media) if media.is_sound_file else _container_blocks(media)


def _file_blocks(media: Media) -> Iterator[tuple[NDArray[np.float32], int]]:
    file = media.sound_file()
    while len(samples := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
        yield samples.mean(axis=1), int(file.samplerate)


def _container_blocks(media: Media) -> Iterator[tuple[NDArray[np.float32], int]]:
    stream = media.stream("sound")
    rate_hz = int(stream.codec_context.sample_rate or 0)
    if rate_hz <= 0:
        raise MediaError("cannot be decoded: its sound has no sample rate")
    # The mean of the channels is taken here: FFmpeg's own mix to mono is their sum / √2.
    resampler = av.AudioResampler(format="fltp", rate=rate_hz)
    for frame in chain(stream.container.decode(stream), [None]):
        for part in resampler.resample(frame):
            yield part.to_ndarray().mean(axis=0), rate_hz


def _resample(
    waveform: NDArray[np.float32], source_rate_hz: int, sample_rate_hz: int
) -> NDArray[np.float32]:
    shared = math.gcd(source_rate_hz, sample_rate_hz)
    up, down = sample_rate_hz // shared, source_rate_hz // shared
    try:
        if up * down > MAX_FILTER_BANK:
            # Imported here, as torch is: a process that resamples nothing starts in a tenth of the time.
            from scipy.signal import resample_poly

            return np.asarray(resample_poly(waveform, up, down), np.float32)
        resample_by_torch = _torch_resampler()
    except ImportError:  # an export's own program needs neither
        return windowed_sinc(waveform, source_rate_hz, sample_rate_hz)
    return resample_by_torch(waveform, source_rate_hz, sample_rate_hz)


@cache
def _torch_resampler() -> Callable[[NDArray[np.float32], int, int], NDArray[np.float32]]:
    import torch
    import torchaudio

    def resample(waveform: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
        threads = torch.get_num_threads()
        if decoding_threads():  # threads that wait for each other cost more than so short a sum
            torch.set_num_threads(decoding_threads())
        try:
            resampled = torchaudio.functional.resample(torch.from_numpy(waveform), source, target)
        finally:
            torch.set_num_threads(threads)
        return np.asarray(resampled.numpy(), np.float32)

    return resample
