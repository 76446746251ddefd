"""Worker processes for jobs that may end their process: a native decoder crashes, or memory runs out.

Each worker has a pipe of its own, so that a death belongs to one job; a marker file says at which
item of the job it happened.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work that one worker does in one go.

    Attributes:
        name: Of the job.
        arguments: Of the function that does it.
    """

    name: str
    arguments: tuple[Any, ...]


class Marker:
    """A file that says at which item a process is; it stays where the process dies, and only then."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Marker:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        return self

    def at(self, item: int) -> None:
        """The process now comes to an item, counted from 0."""
        os.pwrite(self._file, b"%9d" % item, 0)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self.path.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path) -> int | None:
        """The item, or None where no process is or died at one."""
        try:
            return int(path.read_bytes())
        except (OSError, ValueError):
            return None


def run_jobs(
    work: Callable[..., Any],
    jobs: Iterable[Job],
    workers: int,
    on_death: Callable[[Job, int], Job],
) -> Iterator[tuple[Job, Any] | None]:
    """Does jobs in worker processes; no more are taken from `jobs` than are worked on.

    Args:
        work: Called in a worker with a job's arguments.
        jobs: What is to be done.
        workers: Processes.
        on_death: Called with a job whose process died, and its exit code (-11: signal 11);
            returns what a new process does instead.

    Yields:
        A job and what `work` returned, in the order in which they end; None when half a second has passed.

    Raises:
        Exception: What `work` raised, or `on_death`.
    """
    waiting = iter(jobs)
    busy: dict[Connection, tuple[_Worker, Job]] = {}
    try:
        for _, job in zip(range(workers), waiting, strict=False):
            _Worker(work).give(job, busy)
        while busy:
            ready = wait(list(busy), timeout=_POLL_SECONDS)
            if not ready:
                yield None
            for connection in ready:
                assert isinstance(connection, Connection)
                worker, job = busy.pop(connection)
                try:
                    done, value = connection.recv()
                except (EOFError, OSError):
                    code = worker.end()
                    _Worker(work).give(on_death(job, code), busy)
                    continue
                following = next(waiting, None) if done else None
                if following is None:
                    worker.end()
                else:
                    worker.give(following, busy)
                if not done:
                    raise value
                yield job, value
    finally:
        for worker, _ in busy.values():
            worker.process.kill()
            worker.end()


class _Worker:
    """A process that does jobs one after the other, until its pipe is closed."""

    def __init__(self, work: Callable[..., Any]) -> None:
        # Spawned: forking a process whose libraries run threads can deadlock.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job, busy: dict[Connection, tuple[_Worker, Job]]) -> None:
        busy[self.connection] = (self, job)
        try:
            self.connection.send(job.arguments)
        except OSError:
            return  # it is dead, as the next look at its pipe shows

    def end(self) -> int:
        """Waits for its end; returns the exit code."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return code if code is not None else 0


def _serve(connection: Connection, work: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    while True:
        try:
            arguments = connection.recv()
        except EOFError:  # no more jobs; or the parent died
            return
        try:
            answer = (True, work(*arguments))
        except Exception as error:  # the parent raises it
            answer = (False, error)
        try:
            connection.send(answer)
        except OSError:
            return
