"""Reads sound from files: soundfile for audio files, PyAV for containers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from datasets.clips import Part
from datasets.media.containers import (
    AUDIO_SUFFIXES,
    MediaError,
    check_end,
    check_file,
    check_length,
    check_riff,
    decoding,
    decoding_threads,
    first_stream,
    longest,
)
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
    if part is not None and (found := _seek_sound(path, part)) is not None:
        return to_samples(*found, sample_rate_hz)
    blocks: list[NDArray[np.float32]] = []
    samples = source_rate_hz = 0
    for block, source_rate_hz in stream_audio(path, limit_seconds=longest(part)):
        samples += len(block)
        if part is None:
            check_length(samples / source_rate_hz)  # a container does not say how long it is
            blocks.append(block)
            continue
        before = samples - len(block)
        first, last = round(part.start_s * source_rate_hz), round(part.end_s * source_rate_hz)
        blocks.append(block[max(0, first - before) : max(0, last - before)])
        if samples >= last:
            break
    else:
        if part is not None and samples:
            check_end(samples / source_rate_hz, part)
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
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


def stream_audio(
    path: Path, *, limit_seconds: float = math.inf
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Decodes the sound of a file of any length piece by piece.

    Args:
        path: A sound file, or a container with sound.
        limit_seconds: A sound file that says it is longer is refused before it is decoded.

    Yields:
        (L,) the next mono samples, and their rate in Hz.

    Raises:
        MediaError: As `read_audio`; for its length only by `limit_seconds`.
    """
    check_file(path)
    yield from (
        _stream_audio_file(path, limit_seconds)
        if path.suffix.lower() in AUDIO_SUFFIXES
        else _stream_audio_container(path)
    )


def _seek_sound(path: Path, part: Part) -> tuple[NDArray[np.float32], int] | None:
    """(L,) a part of a sound file, and its rate, without what lies before it; None where seeking may not be exact."""
    check_file(path)
    longest(part)
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        return None
    with _reading(path) as file:
        exact = file.format in _SEEKABLE and file.subtype in _SEEKABLE_SAMPLES and file.seekable()
        if not (exact and 0 < file.frames < 2**40):  # a streamed FLAC does not say how long it is
            return None
        check_riff(path)
        rate_hz = int(file.samplerate)
        first, last = round(part.start_s * rate_hz), round(part.end_s * rate_hz)
        if last > file.frames:
            check_end(file.frames / rate_hz, part)
        file.seek(min(first, file.frames))
        samples = file.read(max(0, last - first), dtype="float32", always_2d=True)
        if len(samples) < min(last, file.frames) - first:
            raise MediaError("is truncated")
        return samples.mean(axis=1), rate_hz


def _stream_audio_file(
    path: Path, limit_seconds: float
) -> Iterator[tuple[NDArray[np.float32], int]]:
    with _reading(path) as file:
        if file.frames > limit_seconds * file.samplerate:
            check_length(file.frames / file.samplerate)
        check_riff(path)
        while len(samples := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            yield samples.mean(axis=1), int(file.samplerate)


@contextmanager
def _reading(path: Path) -> Iterator[soundfile.SoundFile]:
    """Opens a sound file; libsndfile's errors become MediaError."""
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError(f"cannot be decoded: {error}") from error


def _stream_audio_container(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    with decoding(path) as container:
        stream = first_stream(container.streams.audio, "sound")
        rate_hz = int(stream.codec_context.sample_rate or 0)
        if rate_hz <= 0:
            raise MediaError("cannot be decoded: its sound has no sample rate")
        # The mean of the channels is taken here: FFmpeg's own mix to mono is their sum / √2.
        resampler = av.AudioResampler(format="fltp", rate=rate_hz)
        for frame in chain(container.decode(stream), [None]):
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
