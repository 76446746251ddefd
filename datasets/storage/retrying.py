"""Reading what lies behind a URL, with patience: a connection that breaks is taken up again."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

Answer = TypeVar("Answer")

ATTEMPTS = 8
"""For every read or write; what comes through starts the count anew."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)
_ABSENT = {400, 401, 403, 404, 410}
"""HTTP's answers that another attempt would not change."""


def open_resuming(url: str) -> IO[bytes]:
    """Opens a path or URL (s3://, gs://, https://) for reading from the start.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It could not be read for about a minute.
    """
    if "://" not in url:
        return Path(url).open("rb")
    return io.BufferedReader(_ResumingFile(url), buffer_size=2**20)


def _is_final(error: Exception) -> bool:
    """Whether another attempt would change nothing; fsspec calls a server's failure a missing file."""
    status = getattr(error.__cause__, "status", None)
    return isinstance(error, _FINAL) and (status is None or status in _ABSENT)


def patiently(action: Callable[[], Answer]) -> Answer:
    """Does something with a storage, again and again for about a minute where it fails.

    Raises:
        FileNotFoundError, PermissionError: At once: another attempt would change nothing.
        OSError: It failed to the end.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:  # every storage has its own
            if _is_final(error):
                raise
            if attempt == ATTEMPTS:
                raise _given_up(error) from error
        _wait(attempt)
    raise AssertionError("unreachable")


def _wait(attempt: int) -> None:
    """Longer from attempt to attempt; never all workers at the same moment."""
    wait = min(_FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S)
    time.sleep(wait * random.uniform(0.5, 1.0))


def _given_up(error: Exception) -> OSError:
    why = str(error) or type(error).__name__
    return OSError(f"{why} (given up after {ATTEMPTS} attempts)")


class _ResumingFile(io.RawIOBase):
    """A remote file that is opened again, at the byte it had come to, when a read fails."""

    def __init__(self, url: str) -> None:
        self.url, self.position = url, 0
        self._file: Any = None
        self._size: int | None = None
        self._options: dict[str, Any] = {}

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with what comes next; 0 at the end of the file."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                data = self._open().read(len(buffer))
                if not data and self._size is not None and self.position < self._size:
                    raise OSError(f"ended after {self.position} of {self._size} bytes")
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)
            except ValueError:  # a web server that sends whole files only
                self._drop()
                if self._options:
                    raise
                self._options = {"block_size": 0}
                continue
            except Exception as error:  # every storage has its own
                self._drop()
                if _is_final(error):
                    raise
                if attempt == ATTEMPTS:
                    raise _given_up(error) from error
            _wait(attempt)
        raise OSError(f"cannot be read ({ATTEMPTS} attempts)")

    def close(self) -> None:
        """Closes the connection."""
        self._drop()
        super().close()

    def _open(self) -> Any:
        if self._file is None:
            system, path = fsspec.core.url_to_fs(self.url)
            self._file = system.open(path, "rb", **self._options)
            self._size = getattr(self._file, "size", None)
            if not self._options:
                self._file.seek(self.position)
            elif self._skip() < self.position:
                raise OSError(f"ended before byte {self.position}")
        return self._file

    def _skip(self) -> int:
        """Reads up to where it had come to; returns how far that went."""
        done = 0
        while done < self.position:
            data = self._file.read(min(2**20, self.position - done))
            if not data:
                break
            done += len(data)
        return done

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # it is broken
                file.close()
