"""Fixtures that several tests share: small corpora, made here from a seed, and a small finished run.

Heavy packages are imported where they are needed: a pure test starts in a second or two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.shared import Shared

if TYPE_CHECKING:
    from datasets.clips import Corpus
    from datasets.sharding.index import ShardIndex
    from search.data.training_data import TrainingData
    from tests.small_run import JointCorpus, SmallRun

for _name in ("EMOTION_CORPORA", "EMOTION_WEIGHTS"):
    # What a machine happens to have changes no test; the fixtures below hand it to who asks.
    if _name in os.environ:
        os.environ[f"TESTED_{_name}"] = os.environ.pop(_name)


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of cores this process may use; xdist itself counts the machine's physical ones."""
    return max(1, min(_cores(), 8))


def _cores() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:  # a container's share, where it has one
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, max(1, int(quota) // int(period))) if quota != "max" else cores
    except (OSError, ValueError):
        return cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is in `tests/runs` and not on the road as slow, and has the longest files begin first.

    `test_aws.py` comes last: it waits for the subnet that `test_cluster.py`, the longest, has first.
    """
    for item in items:
        if item.path.parent.name == "runs" and not item.get_closest_marker("road"):
            item.add_marker("slow")
    first, last = ("test_road.py", "test_cluster.py"), "test_aws.py"
    items.sort(key=lambda item: (item.path.name == last) - (item.path.name in first))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The networks and fits of tests are too small for two."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Real recordings; tests that need them skip where they are absent."""
    folder = os.environ.get("TESTED_EMOTION_CORPORA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EMOTION_CORPORA names no folder of real recordings")
    return Path(folder)


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """Real pretrained weights; tests that need them skip where they are absent."""
    folder = os.environ.get("TESTED_EMOTION_WEIGHTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EMOTION_WEIGHTS names no folder of pretrained weights")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_corpus(shared: Shared) -> Corpus:
    """Four synthetic speakers, six emotions, one clip each: real FLAC and MP4 files."""
    from datasets.corpora.synthetic import load_synthetic

    return shared.make("media", lambda out: load_synthetic(out, speakers=4, repetitions=1, seed=0))


@pytest.fixture(scope="session")
def tiny_shards(tiny_corpus: Corpus, shared: Shared) -> Path:
    """`tiny_corpus` in four shards, with invented clip-level features beside audio and video."""
    from tests.tiny import make_tiny_shards

    def build(out: Path) -> Path:
        make_tiny_shards(tiny_corpus, out / "tiny")
        return out / "tiny"

    return shared.make("tiny-shards", build)


@pytest.fixture(scope="session")
def tiny_index(tiny_shards: Path) -> ShardIndex:
    from datasets.sharding.index import read_index

    return read_index(tiny_shards)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server of our own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture()
def object_store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty S3, which the environment names."""
    import boto3
    import fsspec
    import requests

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    requests.post(f"{s3_server}/moto-api/reset", timeout=60)
    yield boto3.client("s3")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="session")
def cache_folder(shared: Shared) -> Path:
    """For all of the session: a corpus is decoded once."""
    return shared.make("cache", lambda folder: folder)


@pytest.fixture(scope="session")
def tiny_data(tiny_index: ShardIndex, cache_folder: Path) -> TrainingData:
    """The tiny corpus, cached, in two speaker-disjoint folds."""
    from datasets.protocols.split import make_folds
    from datasets.sharding.clip_cache import open_cache
    from search.data.training_data import TrainingData

    return TrainingData(
        open_cache(tiny_index, cache_folder), make_folds(tiny_index, "speaker-kfold:2")
    )


@pytest.fixture(scope="session")
def joint(tiny_corpus: Corpus, shared: Shared) -> JointCorpus:
    """`tiny_corpus` with each clip's audio and video in one MKV, and invented features."""
    from tests.small_run import make_joint_corpus

    return shared.make("joint", lambda folder: make_joint_corpus(tiny_corpus, folder))


@pytest.fixture(scope="session")
def joint_corpus(joint: JointCorpus) -> Corpus:
    return joint.corpus


@pytest.fixture(scope="session")
def small_run(joint: JointCorpus, cache_folder: Path, shared: Shared) -> SmallRun:
    """Three trained experts, three folds, a test speaker: all that a search writes, without Ray."""
    from rich.console import Console

    from search.data.corpus import load_corpus
    from tests.small_run import SmallRun, make_small_run

    made = shared.make("small-run", lambda home: make_small_run(joint, cache_folder, home))
    folder, experts, assessment = made
    data = load_corpus(folder.config, Console(quiet=True))
    return SmallRun(folder.path, folder, data, experts, assessment, joint.media, joint.features)


@pytest.fixture(scope="session")
def exported(small_run: SmallRun, shared: Shared) -> Path:
    """The small run's ensemble, as `ensembles.export` leaves it; to be read, not changed."""
    from ensembles.exporting.finished_run import read_run
    from ensembles.exporting.writer import export

    def build(folder: Path) -> Path:
        export(read_run(small_run.path), folder / "ensemble")
        return folder / "ensemble"

    return shared.make("exported", build)
