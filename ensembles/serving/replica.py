"""A replica on Ray Serve: a decoder, the networks, and batches of what several people ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.serve._private.replica as serve_replica
from ray import serve

from ensembles import EnsembleError
from ensembles.artifact.manifest import read_artifact
from ensembles.inference.predictor import Predictor
from ensembles.serving.answers import answer_uploads
from ensembles.serving.app import Health, Prediction, make_app
from ensembles.serving.decoder import Decoded, Decoder
from ensembles.serving.limits import Limits, Refused

Result = TypeVar("Result")

_BATCH_UPLOADS = 8
_WAIT_S = 0.05
"""For others to share a batch."""
_AT_ONCE, _QUEUED = 16, 32
"""Requests that a replica works on, and that wait for one; who comes then is told so (503)."""


@dataclass(frozen=True)
class ServeSettings:
    """Settings that every replica is given.

    Attributes:
        folder: The exported ensemble.
        work: For uploads, removed with the server.
        limits: Of an upload.
        hosts: Names under which the server may be asked for; None for any.
        replicas: How many.
        verify: SHA-256 that the folder's `ensemble.json` must have; None for any.
    """

    folder: Path
    work: Path
    limits: Limits
    hosts: list[str] | None
    replicas: int
    verify: str | None = None


class Replica:
    """Answers uploads; the `Service` of `ensembles.serving.app`."""

    def __init__(self, settings: ServeSettings) -> None:
        _listen_here_only()
        self.limits, self.work = settings.limits, settings.work
        self._predictor = Predictor(read_artifact(settings.folder, verify=settings.verify))
        self._decoder = Decoder(settings.folder, settings.limits)
        # One of each at a time; a queue for the decoder does not hold up the networks.
        self._decoding, self._predicting = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._requests = self._batches = 0

    async def predict(self, path: Path, name: str) -> Prediction:
        """Decodes a file, in turn, and predicts it together with whatever else has come."""
        decoded = await _in(self._decoding, self._decoder.decode, path)
        result: Prediction | Refused = await self._together(decoded)
        if isinstance(result, Refused):
            raise result
        return result.model_copy(update={"name": name})

    @serve.batch(max_batch_size=_BATCH_UPLOADS, batch_wait_timeout_s=_WAIT_S)
    async def _together(self, uploads: list[Decoded]) -> list[Prediction | Refused]:
        self._batches += 1
        self._requests += len(uploads)
        return await _in(self._predicting, answer_uploads, self._predictor, uploads)

    def health(self) -> Health:
        """Return that the replica is there, and what it has done."""
        return Health(
            status="ok",
            labels=list(self._predictor.artifact.labels),
            max_mb=self.limits.megabytes,
            max_seconds=self.limits.seconds,
            replica=serve.get_replica_context().replica_id.unique_id,
            requests=self._requests,
            batches=self._batches,
        )

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()


async def _in(pool: ThreadPoolExecutor, function: Callable[..., Result], *given: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *given)


def deployment(settings: ServeSettings) -> Any:
    """The application, for `serve.run`."""
    served = serve.deployment(
        name="emotions",
        num_replicas=settings.replicas,
        max_ongoing_requests=_AT_ONCE,
        max_queued_requests=_QUEUED,
        ray_actor_options={"num_cpus": 1},
    )
    return served(serve.ingress(make_app(settings.hosts))(Replica)).bind(settings)


def _listen_here_only() -> None:
    """Binds this replica's gRPC port to the loopback interface.

    Ray 2.60 opens it on all interfaces, without its token, and unpickles what comes in: whoever
    reached it could run code. It is bound after this replica's constructor. That nothing listens
    elsewhere in any version is checked once all is up (`ensembles.serve`).
    """
    # Private: an argument of `serve.start` for the address would replace it.
    if not hasattr(serve_replica, "add_port_to_grpc_server"):
        raise EnsembleError(
            f"ray {ray.__version__} lacks a name that this program uses (add_port_to_grpc_server). "
            "Install version 2.60: pip install -c constraints.txt ray"
        )
    bind = serve_replica.add_port_to_grpc_server

    def bind_here(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    serve_replica.add_port_to_grpc_server = bind_here
