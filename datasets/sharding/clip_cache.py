"""The node-local cache: every decoded clip in one memory-mapped file a kind.

The first process on a node that needs a corpus streams its shards once and lays the clips
out on disk; the others wait for it. From then on every trial on the node reads at memory
speed, sharing the pages. What a frozen front end computes from the clips is kept the same
way (`derive`). A cache belongs to one `index.json`, by checksum, and the folder is bounded:
the corpora that were used longest ago go first.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from datasets.clips import DataError
from datasets.features import clip_means
from datasets.media.fingerprint import fingerprint, near_duplicates
from datasets.rater_votes import soft_targets
from datasets.sharding.index import ShardIndex, read_index
from datasets.sharding.ragged import RaggedFile, RaggedWriter, cannot_write, writing_into
from datasets.sharding.stream import Sample, content_hashes, raise_on_corruption, stream_clips
from datasets.storage.atomic import write_atomically
from datasets.storage.synced_folder import default_cache_folder

Batch = dict[str, Tensor]
"""Named tensors: `audio` (B, L) float32 in [-1, 1], `video` (B, V, H, W, 3) uint8,
`features` (B, F) float32, `feature_sequence` (B, S, F) float32, `target` (B,) int64 class
index. Sequences come with `<name>_lengths` (B,) int64 and are zero behind their length. Frames
with saliency maps have a fourth channel. Traces are not of a batch: `datasets.targets` joins them
to those of whole recordings."""


DEFAULT_MAX_BYTES = 16 * 2**30


_RESIDENT_BYTES = 128 * 2**20


_KINDS: dict[str, str] = {
    "audio": "int16",
    "video": "uint8",
    "features": "float32",
    "feature_sequence": "float32",
    "trace": "float32",
}


_HOME = re.compile("[0-9a-f]{24}")


Derivation = Callable[[Batch], tuple[Tensor, Tensor]]


class ClipCache:
    """Decoded clips of one corpus, by row of its index.

    Attributes:
        index: The corpus, perhaps restricted to some classes; rows count its clips.
        missing: (N,) True for clips whose shard or content was corrupt (`skip_corrupt`).
        targets: (N,) class index of each row.
        soft_targets: (N, K) float32 shares of the raters who named each class; one-hot where a
            clip has one label alone.
    """

    def __init__(self, folder: Path, index: ShardIndex, full: ShardIndex, max_bytes: int) -> None:
        self.folder, self.index, self.max_bytes = folder, index, max_bytes
        row_of = {entry.clip: row for row, entry in enumerate(full.clips)}
        self._names = tuple(row_of)
        self._rows = np.asarray([row_of[entry.clip] for entry in index.clips], np.int64)
        self._files = {
            kind: RaggedFile(folder / f"{kind}.bin") for kind in _KINDS if full.has(kind)
        }
        lost = set(json.loads((folder / "complete.json").read_text())["missing"])
        self.missing = np.asarray([entry.clip in lost for entry in index.clips])
        class_of = {label: number for number, label in enumerate(index.labels)}
        # Without classes, all are of one.
        self.targets = np.asarray([class_of.get(e.label, 0) for e in index.clips], np.int64)

    @cached_property
    def soft_targets(self) -> NDArray[np.float32]:
        """See `datasets.rater_votes.soft_targets`."""
        entries = self.index.clips
        return soft_targets(
            self.index.labels, [e.label for e in entries], [e.votes for e in entries]
        )

    def batch(self, rows: NDArray[np.int64], kinds: Iterable[str]) -> Batch:
        """Gathers clips as a batch of named tensors, see `Batch`."""
        batch: Batch = {"target": torch.from_numpy(self.targets[rows])}
        for kind in kinds:
            values, lengths = self._files[kind].gather(self._rows[rows])
            if kind == "features":
                batch["features"] = values[:, 0]
                continue
            batch[kind] = values.to(torch.float32).div_(32768.0) if kind == "audio" else values
            batch[f"{kind}_lengths"] = lengths
        return batch

    def trace(self, row: int) -> NDArray[np.float32]:
        """(S, D) what raters said of a clip at every step."""
        file, position = self._files["trace"], self._rows[row]
        start = file.offsets[position]
        return np.asarray(file.data[start : start + file.lengths[position]])

    def near_duplicates(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> list[tuple[str, str]]:
        """Pairs of clips whose sound is nearly the same; looked for once a node, then kept.

        Args:
            on_progress: Called with clips heard and clips in all while looking.

        Raises:
            DataError: If the cache cannot be written.
        """
        if "audio" not in self._files:
            return []
        path = self.folder / "near-duplicates.json"
        with FileLock(str(path.with_suffix(".lock"))):
            if not path.exists():
                pairs = self._look_for_near_duplicates(on_progress)
                with writing_into(self.folder):
                    write_atomically(path, json.dumps(pairs).encode())
        here = {entry.clip for entry in self.index.clips}
        found = [(str(one), str(other)) for one, other in json.loads(path.read_text())]
        return [pair for pair in found if here.issuperset(pair)]

    def _look_for_near_duplicates(
        self, on_progress: Callable[[int, int], None] | None
    ) -> list[tuple[str, str]]:
        file, heard = self._files["audio"], {}
        for row, clip in enumerate(self._names):
            start = file.offsets[row]
            words = fingerprint(
                file.data[start : start + file.lengths[row]], self.index.sample_rate_hz
            )
            heard[clip] = np.fromiter(words, np.uint32)
            if on_progress and row % 16 == 0:
                on_progress(row, len(self._names))
        return near_duplicates(heard)

    def derive(
        self,
        name: str,
        kind: str,
        compute: Derivation,
        *,
        dtype: str = "float32",
        batch_clips: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> RaggedFile:
        """Compute a frozen function of every clip, once a node, and share the results.

        Args:
            name: Says everything that the result depends on besides the clips.
            kind: The input it reads, such as audio.
            compute: Batch → ((B, n, *shape) float32, (B,) lengths).
            dtype: How it is kept, and read: float32, or float16 for half the space.
            batch_clips: Clips handed to `compute` at once.
            on_progress: Called with clips done and clips in all while computing.

        Returns:
            Items by row of `self.index`.

        Raises:
            DataError: It does not fit the bound, or cannot be written.
        """
        assert dtype in ("float32", "float16"), dtype
        rows_hash = hashlib.sha256(self._rows.tobytes()).hexdigest()
        said = [name, kind, rows_hash] + ([dtype] if dtype != "float32" else [])
        digest = hashlib.sha256("\n".join(said).encode()).hexdigest()[:24]
        path = self.folder / f"derived-{digest}.bin"
        with FileLock(str(path.with_suffix(".lock"))):
            try:
                return RaggedFile(path)
            except FileNotFoundError:
                _remove_left_over(self.folder)
                with RaggedWriter(path, len(self._rows), dtype) as writer:
                    for done in self._fill_derived(writer, name, kind, compute, batch_clips):
                        if on_progress:
                            on_progress(done, len(self._rows))
                    writer.finish({"name": name})
        return RaggedFile(path)

    def _fill_derived(
        self, writer: RaggedWriter, name: str, kind: str, compute: Derivation, batch_clips: int
    ) -> Iterator[int]:
        """Yields after every batch how many clips are done."""
        # Clips of like length together: padding is computed and thrown away. The longest first:
        # what memory does not suffice for fails at once.
        given = self._files[kind].lengths[self._rows]
        order = np.argsort(-given, kind="stable")
        room, read = 0, 0
        for start in range(0, len(order), batch_clips):
            rows = order[start : start + batch_clips]
            values, lengths = compute(self.batch(rows, [kind]))
            kept = values.detach().to("cpu", getattr(torch, str(writer.dtype))).numpy()
            read += int(given[rows].sum())
            size = writer.bytes + int(lengths.sum()) * kept[0, :1].nbytes
            if size > room:  # the first batch, or it grows beyond what that one promised
                room = math.ceil(size * max(given.sum() / max(read, 1), 1.0))
                self._make_room(name, room, room - writer.bytes)
            writer.add(rows, kept, lengths.cpu().numpy())
            yield min(start + batch_clips, len(order))

    def _make_room(self, name: str, size: int, need: int) -> None:
        """For `need` more bytes of a derivation of about `size`."""
        used = _make_room(self.folder.parent, need, self.max_bytes, keep=self.folder)
        if used + need > self.max_bytes:
            raise DataError(
                f"What '{name}' makes of the clips takes about {size / 2**30:.2f} GiB; beside the "
                f"clips themselves the cache has {(self.max_bytes - used) / 2**30:.2f} GiB for it. "
                "Raise --cache-gb."
            )


def open_cache(
    index: ShardIndex,
    folder: Path | None = None,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    skip_corrupt: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ClipCache:
    """Opens the cache of a corpus on this node, filling it first where needed.

    Args:
        index: The corpus, as read or restricted to some classes.
        folder: Holds the caches of all corpora; by default `default_cache_folder()`.
        max_bytes: Bound on the folder; other corpora's caches are removed to keep it.
        skip_corrupt: Use what is intact of a damaged shard instead of refusing.
        on_progress: Called with clips read and clips in all while filling.

    Raises:
        DataError: A corrupt shard or clip (named), a corpus larger than the bound, or a
            folder that cannot be written.
    """
    base = folder or default_cache_folder()
    full = read_index(index.root)
    if index.checksum and full.checksum != index.checksum:
        raise DataError(
            f"The shards in '{index.root}' changed while they were in use. Start again."
        )
    full = full.part_of(*index.part) if index.part != (0, 1) else full
    home = base / _home_name(full)
    try:
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(str(home) + ".lock"):
            marker = home / "complete.json"
            if not marker.exists():
                _fill(full, home, max_bytes, skip_corrupt, on_progress)
            if not skip_corrupt and (missing := json.loads(marker.read_text())["missing"]):
                # Filled by a run that allowed it; the shards may have been mended since.
                _require_intact(full, missing)
                _fill(full, home, max_bytes, skip_corrupt, on_progress)
            os.utime(marker)
    except OSError as error:
        raise cannot_write(base, error) from error
    return ClipCache(home, index, full, max_bytes)


def _home_name(index: ShardIndex) -> str:
    """By the index's checksum; a worker's part has a home of its own."""
    if index.part == (0, 1):
        return index.checksum[:24]
    return hashlib.sha256(f"{index.checksum} {index.part}".encode()).hexdigest()[:24]


def _fill(
    index: ShardIndex,
    home: Path,
    max_bytes: int,
    skip_corrupt: bool,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    shutil.rmtree(home, ignore_errors=True)
    lengths = {
        "audio": np.asarray([e.samples for e in index.clips], np.int64),
        "video": np.asarray([e.frames for e in index.clips], np.int64),
        "features": np.asarray([int(e.features > 0) for e in index.clips], np.int64),
        "feature_sequence": np.asarray([e.feature_steps for e in index.clips], np.int64),
        "trace": np.asarray([e.trace_steps for e in index.clips], np.int64),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "audio": (),
        "video": index.frame_shape,
        "features": (len(index.feature_names),),
        "feature_sequence": (len(index.feature_names),),
        "trace": (len(index.dimensions),),
    }
    kinds = [kind for kind in _KINDS if index.has(kind)]
    need = sum(
        int(lengths[k].sum() * np.prod(shapes[k])) * np.dtype(_KINDS[k]).itemsize for k in kinds
    )
    if need > max_bytes:
        raise DataError(
            f"'{index.root}' takes {need / 2**30:.1f} GiB decoded, the cache may hold "
            f"{max_bytes / 2**30:.1f} GiB. Raise --cache-gb."
        )
    _make_room(home.parent, need, max_bytes, keep=home)
    data = {
        k: RaggedFile.create(home / f"{k}.bin", lengths[k], shapes[k], _KINDS[k]) for k in kinds
    }
    offsets = {k: np.concatenate([[0], np.cumsum(lengths[k])]) for k in kinds}
    row_of = {entry.clip: row for row, entry in enumerate(index.clips)}
    seen: set[str] = set()
    written = 0
    for sample in _intact(index, skip_corrupt):
        row = row_of[sample["clip"]]
        values = _by_kind(sample)
        for kind in kinds:
            if kind in values:
                start, stop = offsets[kind][row], offsets[kind][row + 1]
                data[kind][start:stop] = values[kind]
                written += values[kind].nbytes
        if written > _RESIDENT_BYTES:
            _let_go(data.values())
            written = 0
        seen.add(sample["clip"])
        if on_progress:
            on_progress(len(seen), len(index.clips))
    missing = [entry.clip for entry in index.clips if entry.clip not in seen]
    if missing and not skip_corrupt:
        raise DataError(
            f"The shards in '{index.root}' lack {len(missing)} clips of their index: "
            f"{', '.join(missing[:5])}. Prepare the corpus again, or use what is intact with --skip-corrupt."
        )
    if len(missing) == len(index.clips):
        raise DataError(f"No intact clip is left in '{index.root}'.")
    for kind in kinds:
        RaggedFile.finish(home / f"{kind}.bin", data[kind])
    complete = json.dumps({"root": index.root, "missing": missing})
    write_atomically(home / "complete.json", complete.encode())


def _let_go(mapped: Iterable[NDArray[Any]]) -> None:
    """The pages of mapped files need not stay in this process's memory; what was written is kept."""
    for values in mapped:
        if isinstance(values, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            pages: Any = values.base
            pages.madvise(mmap.MADV_DONTNEED)


def _by_kind(sample: Sample) -> dict[str, NDArray[Any]]:
    """A decoded clip as the cache keeps it: of features of every frame, their mean too."""
    kept: dict[str, NDArray[Any]] = {k: sample[k] for k in _KINDS if k in sample}
    if "features" in sample:
        kept["features"] = clip_means(sample["features"])
        if sample["features"].ndim == 2:
            kept["feature_sequence"] = sample["features"]
    return kept


def _require_intact(index: ShardIndex, clips: list[str]) -> None:
    """Raises if the shards still lack one of the clips."""
    names = {entry.shard for entry in index.clips if entry.clip in clips}
    suspects = replace(index, shards=tuple(s for s in index.shards if s.name in names))
    intact = {sample["clip"] for sample in _intact(suspects, skip_corrupt=True, split=False)}
    lost = [clip for clip in clips if clip not in intact]
    if lost:
        raise DataError(
            f"{len(lost)} clips of '{index.root}' are corrupt: {', '.join(lost[:5])}. "
            "Prepare the corpus again, or use what is intact with --skip-corrupt."
        )


def _intact(
    index: ShardIndex, skip_corrupt: bool, *, split: bool = True
) -> Iterator[dict[str, Any]]:
    """Streams the clips whose content is what the index says; the rest raise or are left out."""

    def ignore(culprit: str, error: Exception) -> None:
        """Left out here, counted and named by the caller as missing."""

    handler = ignore if skip_corrupt else raise_on_corruption
    hash_of = {entry.clip: (entry.content_hash, entry.shard) for entry in index.clips}
    for sample in stream_clips(index, handler=handler, split=split):
        expected, shard = hash_of.get(sample["clip"], ("", ""))
        if content_hashes(sample)[0] == expected:
            yield sample
        else:
            handler(
                f"clip '{sample['clip']}' in shard '{shard}'",
                ValueError("its content is not what the index says"),
            )


def _make_room(base: Path, need: int, max_bytes: int, *, keep: Path) -> int:
    """Removes the caches used longest ago until `need` more bytes fit the bound.

    Returns:
        Bytes of what is left.
    """
    # Whatever else lies in a folder that --cache-dir names is not ours to remove.
    homes = [path for path in base.iterdir() if path.is_dir() and _HOME.fullmatch(path.name)]
    sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in homes}

    def last_use(path: Path) -> float:
        marker = path / "complete.json"
        return marker.stat().st_mtime if marker.exists() else path.stat().st_mtime

    # Processes that still map a removed file keep their pages until they end.
    for path in sorted((p for p in homes if p != keep), key=last_use):
        if sum(sizes.values()) + need <= max_bytes:
            break
        shutil.rmtree(path, ignore_errors=True)
        del sizes[path]
    for path in (
        sorted(keep.glob("derived-*.bin"), key=lambda p: p.stat().st_atime) if keep in sizes else []
    ):
        if sum(sizes.values()) + need <= max_bytes:
            break
        sizes[keep] -= path.stat().st_size
        for suffix in (".json", ".lengths.npy", ".offsets.npy", ".bin"):
            path.with_suffix(suffix).unlink(missing_ok=True)
    return sum(sizes.values())


def _remove_left_over(folder: Path) -> None:
    """Removes what processes that were killed had written of a derivation."""
    for partial in folder.glob("derived-*.partial"):
        lock = FileLock(str(folder / f"{partial.name.partition('.')[0]}.lock"))
        with suppress(Timeout), lock.acquire(timeout=0):
            partial.unlink(missing_ok=True)
