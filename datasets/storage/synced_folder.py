"""A folder of this machine, and its copy behind a URL (s3://, gs://) where it is kept there.

An object store has neither renames nor appends, but what is put appears whole or not at
all: files are written here, and sent whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import fsspec

from datasets.storage.atomic import write_atomically
from datasets.storage.retrying import patiently


def default_cache_folder() -> Path:
    """`$EMOTION_CACHE`, or `emotion-search` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("EMOTION_CACHE", str(Path(base) / "emotion-search")))


def is_url(place: str | Path) -> bool:
    """Whether it is no path of this machine."""
    return "://" in str(place)


def working_copy(url: str, base: Path) -> Path:
    """Where a folder behind a URL is worked on, on every machine that shares in it.

    Args:
        url: Of the folder.
        base: For what a machine keeps for itself, such as the cache.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    return base / "kept" / hashlib.sha256(parent.encode()).hexdigest()[:12] / name


class OutsideError(OSError):
    """A name of somebody else's leads out of the folder that it was found in."""


def below(folder: Path, name: str, listed_by: str | None = None) -> Path:
    """Return the path below a folder that a listing, an index or a record names.

    Whoever can write to a bucket, or publishes shards, chooses such names, and object keys may
    hold `..`.

    Args:
        folder: On this machine.
        name: Relative to it, with slashes. A backslash counts as one: it is on Windows.
        listed_by: What names it, for the message; by default the folder.

    Raises:
        OutsideError: The name is absolute, has a drive, or holds `..`.
    """
    parsed = PureWindowsPath(name)  # which splits at / too
    if parsed.anchor or ".." in parsed.parts or "\0" in name:
        raise OutsideError(
            f"'{listed_by or folder}' lists {name!r}, which lies outside its folder; remove it there"
        )
    return folder / name


@dataclass(frozen=True)
class KeptFolder:
    """A folder, and where it is kept.

    Without a URL the folder itself is the truth, and sending and fetching do nothing.

    Attributes:
        path: On this machine.
        url: Its copy that every machine reaches, or None.
    """

    path: Path
    url: str | None = None

    @staticmethod
    def at(place: str | Path, base: Path) -> KeptFolder:
        """Return the folder at a path, or at a URL, which is then worked on below `base`."""
        if is_url(place):
            url = str(place).rstrip("/")
            return KeptFolder(working_copy(url, base), url)
        return KeptFolder(Path(place))

    def send(self, *names: str) -> None:
        """Sends files, or all files of folders.

        Args:
            names: Relative to the folder.

        Raises:
            OSError: The storage does not take them; PermissionError at once.
        """
        if self.url is None:
            return
        for name in names:
            source = self._below(name)
            files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else []
            for file in files or [source]:
                self._put(file)

    def _put(self, file: Path) -> None:
        content = file.read_bytes()
        target = self._address(file.relative_to(self.path).as_posix())
        self._do(lambda fs: fs.pipe_file(target, content))

    def fetch(self, name: str) -> bool:
        """Gets a file; False if there is none, there and here.

        Raises:
            OSError: The storage does not answer; OutsideError if the name leads elsewhere.
        """
        path = self._below(name)
        if self.url is None:
            return path.exists()
        try:
            content = self._do(lambda fs: fs.cat_file(self._address(name)))
        except FileNotFoundError:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return True

    def sizes(self, under: str = "") -> dict[str, int]:
        """Relative name → bytes, of every file of a folder, where it is kept.

        Raises:
            OSError: The storage does not answer; OutsideError if a file's name leads elsewhere.
        """
        folder = self._below(under)
        if self.url is None:
            files = [p for p in folder.rglob("*") if p.is_file()]
            return {p.relative_to(self.path).as_posix(): p.stat().st_size for p in files}
        root = self._address("")
        place = self._address(under)
        try:
            listed = self._do(lambda fs: fs.find(place, detail=True))
        except FileNotFoundError:
            return {}
        start = fsspec.core.strip_protocol(root).rstrip("/") + "/"
        found = {name.removeprefix(start): info["size"] for name, info in listed.items()}
        for name, size in found.items():
            self._below(name)
            if size is None:
                raise OSError(f"'{self.url}' lists no sizes, as a web server; an object store does")
        return found

    def names(self) -> list[str]:
        """Files and folders right below it, where it is kept.

        Raises:
            OSError: The storage does not answer; OutsideError if a name leads elsewhere.
        """
        if self.url is None:
            return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        try:
            listed = self._do(lambda fs: fs.ls(self._address(""), detail=False))
        except FileNotFoundError:
            return []
        names = sorted(name.rstrip("/").rpartition("/")[2] for name in listed)
        for name in names:
            self._below(name)
        return names

    def pull(self, names: Iterable[str]) -> None:
        """Gets what is missing here, or differs in size, of files and folders.

        Raises:
            OSError: The storage does not answer; OutsideError, before anything is written, if a
                file's name leads elsewhere.
        """
        if self.url is None:
            return
        listed = [self.sizes(name) for name in names]
        for file, size in (item for sizes in listed for item in sizes.items()):
            path = self._below(file)
            if not path.exists() or path.stat().st_size != size:
                self.fetch(file)

    def remove(self, name: str) -> None:
        """Removes a file or folder, here and there; nothing happens where there is none."""
        path = self._below(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if self.url is None:
            return

        def gone(fs: Any) -> None:
            if fs.exists(self._address(name)):
                fs.rm(self._address(name), recursive=True)

        self._do(gone)

    def _below(self, name: str) -> Path:
        return below(self.path, name, self.url)

    def _address(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def _do(self, action: Callable[[Any], Any]) -> Any:
        """With the storage, patiently, and knowing nothing from before."""

        def attempt() -> Any:
            system, _ = fsspec.core.url_to_fs(str(self.url))
            system.invalidate_cache()
            return action(system)

        return patiently(attempt)


def local_folder(place: str | Path, base: Path) -> Path:
    """A folder of this machine with all that is in a folder or behind a URL.

    Args:
        place: A path, or a URL that is copied below `base`; what is there already stays.
        base: For what a machine keeps for itself, such as the cache.

    Raises:
        OSError: There is no such folder, or the storage does not answer.
    """
    kept = KeptFolder.at(place, base)
    names = kept.names()
    if not names:
        raise FileNotFoundError(errno.ENOENT, "no such folder, or nothing in it", str(place))
    kept.pull(names)
    return kept.path
