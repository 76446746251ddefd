"""The HTTP side: the page, `POST /predict`, `GET /health`, and their OpenAPI description."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensembles.serving.limits import Limits, Refused, check_name

PAGE = Path(__file__).with_name("page.html")


class WindowAnswer(BaseModel):
    """Prediction for a part of the clip."""

    start_s: float
    end_s: float
    probabilities: dict[str, float] = Field(description="Empty where there is an error.")
    error: str | None = Field(None, description="Why nothing is said of this part.")


class Prediction(BaseModel):
    """Prediction of the ensemble for a clip."""

    name: str
    label: str = Field(description="The most probable class.")
    probabilities: dict[str, float] = Field(description="Of the whole clip, by class; sum 1.")
    seconds: float = Field(description="How long the clip is; 0 if its container does not say.")
    windows: list[WindowAnswer] = Field(description="None for a clip no longer than one window.")
    experts: list[str] = Field(description="Those that took part in the answer to the whole.")
    notes: list[str] = Field(description="Inputs that were missing, and why.")


class Problem(BaseModel):
    """Why there is no prediction."""

    error: str


class Health(BaseModel):
    """State of the replica that answered."""

    status: str
    labels: list[str]
    max_mb: float
    max_seconds: float
    replica: str
    requests: int = Field(description="Files that this replica has predicted since its start.")
    batches: int = Field(description="In how many batches it did.")


class Service(Protocol):
    """Service behind the routes; `ensembles.serving.replica.Replica`, or another one in tests."""

    limits: Limits
    work: Path

    async def predict(self, path: Path, name: str) -> Prediction:
        """Decodes and predicts an upload."""

    def health(self) -> Health:
        """How it is."""


def own_service() -> Service:
    """The replica in whose process this runs."""
    from ray import serve

    service: Service = serve.get_replica_context().servable_object
    return service


Own = Annotated[Service, Depends(own_service)]
router = APIRouter()

_REASONS = {
    403: "asked for under a name that is not the server's, or by another site's page",
    413: "larger or longer than allowed",
    415: "no sound or video file by its name",
    422: "cannot be decoded, or holds nothing that the ensemble reads",
    503: "the server is busy or starting",
    504: "was not decoded in time",
}
_RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/", include_in_schema=False)
def page() -> HTMLResponse:
    """A page to drop files on."""
    return HTMLResponse(PAGE.read_text(encoding="utf-8"))


@router.get("/health")
async def health(service: Own) -> Health:
    """Whether predictions can be had, and what is allowed."""
    return service.health()


@router.post(
    "/predict",
    openapi_extra=_RAW_BODY,
    responses={code: {"model": Problem, "description": why} for code, why in _REASONS.items()},
)
async def predict(
    request: Request,
    service: Own,
    name: Annotated[str, Query(description="The file's name; its suffix says what it is.")],
) -> Prediction:
    """Predicts the file that is the request's body, as it is (no form)."""
    suffix = check_name(name)
    if (length := request.headers.get("content-length", "")).isdecimal():
        service.limits.check_bytes(int(length))
    async with received(request.stream(), service, suffix) as path:
        return await service.predict(path, name)


@asynccontextmanager
async def received(
    body: AsyncIterator[bytes], service: Service, suffix: str
) -> AsyncIterator[Path]:
    """The upload in a file, gone afterwards.

    Raises:
        Refused: When more has come than is allowed, whatever was announced.
    """
    count = 0
    with tempfile.TemporaryDirectory(dir=service.work, prefix="upload-") as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as file:
            async for piece in body:
                count += len(piece)
                service.limits.check_bytes(count)
                file.write(piece)
        yield path


def make_app(hosts: list[str] | None) -> FastAPI:
    """The application.

    Args:
        hosts: Names under which it may be asked for; None for any. Otherwise a stranger's page
            whose name points to 127.0.0.1 could read the answers.
    """
    app = FastAPI(
        title="Emotion ensemble",
        description="Predicts the emotion in a sound or video file with an exported ensemble.",
        version="1",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(router)
    app.add_exception_handler(Refused, _tell)
    app.add_exception_handler(RequestValidationError, _tell)
    app.add_exception_handler(HTTPException, _tell)
    app.add_exception_handler(Exception, _tell)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _tell(_: Request, error: Exception) -> JSONResponse:
    """Every error is one line of JSON."""
    if isinstance(error, Refused):
        return JSONResponse({"error": error.text}, error.status)
    if isinstance(error, RequestValidationError):
        return JSONResponse({"error": "Give the file's name: POST /predict?name=clip.wav."}, 400)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": f"{error.detail}."}, error.status_code)
    return JSONResponse({"error": "The server failed; its log says why."}, 500)


class Guard:
    """Refuses requests that another site's page may have sent, and tells browsers what is allowed.

    Args:
        app: What is guarded.
        hosts: As for `make_app`.
    """

    def __init__(self, app: ASGIApp, hosts: list[str] | None) -> None:
        self.app, self.hosts = app, hosts
        self._headers = [
            (name.encode(), value.encode())
            for name, value in {
                "content-security-policy": content_policy(PAGE.read_text(encoding="utf-8")),
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "cache-control": "no-store",
            }.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI defines it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        given: dict[bytes, bytes] = dict(scope["headers"])
        if why := self._foreign(given):
            await JSONResponse({"error": why}, 403)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _foreign(self, headers: dict[bytes, bytes]) -> str | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d+$", "", host)
        if self.hosts is not None and name not in self.hosts:
            return f"Ask for {self.hosts[0]}, not for {host[:100] or 'nothing'}."
        if headers.get(b"sec-fetch-site") == b"cross-site":
            return "Another site's page cannot ask."
        return None


def content_policy(html: str) -> str:
    """A Content-Security-Policy that lets a page's own script and style run, and nothing else."""
    policy: dict[str, Any] = {"default-src": "'none'", "connect-src": "'self'"}
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy[f"{tag}-src"] = f"'sha256-{digest}'"
    policy |= {"base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    return "; ".join(f"{name} {value}" for name, value in policy.items())
