"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, partial_in: Path | None = None) -> Iterator[BufferedRandom]:
    """Open a file that appears when the block ends, also after a power cut.

    Nothing appears, and nothing half written stays, where the block raises. A process that is
    killed leaves `NAME.PID.partial`.

    Args:
        path: The file.
        partial_in: Folder of the partial file, on the same disk; by default the file's own.
    """
    partial = (partial_in or path.parent) / f"{path.name}.{os.getpid()}.partial"
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # room on a full disk
            partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also after a power cut."""
    with written_whole(path) as file:
        file.write(content)
