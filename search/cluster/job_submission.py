"""Submit a search to a cluster as a Ray job: `--address http://HOST:8265`.

The code travels as the job's working folder; data and runs are named as the cluster sees
them. The job goes on when this terminal is closed.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import urllib.error
import urllib.request
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search.config import ConfigError, SearchConfig, default_runs_dir, to_document
from search.versions import private_names

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_REACH_S = 10.0


def is_dashboard(address: str | None) -> bool:
    """Whether this is the address of a dashboard, to which jobs are submitted."""
    found = address or os.environ.get("RAY_ADDRESS", "")
    return found.startswith(("http://", "https://"))


def submit(config: SearchConfig, given: set[str], console: Console) -> int:
    """Submits the search, and shows what it prints until it ends.

    Returns:
        The job's exit code; 130 if the user left before its end.

    Raises:
        ConfigError: The cluster cannot be reached, or a path is one of this machine alone.
    """
    address = config.address or os.environ["RAY_ADDRESS"]
    words = command(config, given)
    client = _client(address)
    from search.cluster.connection import EXCLUDES, ROOT

    runtime = {"working_dir": str(ROOT), "excludes": EXCLUDES, "env_vars": {"COLUMNS": "100"}}
    with console.status("sending the code"):
        try:
            job = client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=f"{_title(config)}-{datetime.now():%Y%m%d-%H%M%S}",
                runtime_env=runtime,
            )
        except (RuntimeError, ConnectionError, OSError) as error:
            raise ConfigError(f"{address} does not take the job: {_line(error)}") from error
    at = f"--address {address}"
    console.print(f"submitted as {job}: {shlex.join(words)}", highlight=False, soft_wrap=True)
    console.print(
        f"It goes on without this terminal. Look again: ray job logs {at} --follow {job}. "
        f"Stop it: ray job stop {at} {job}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        asyncio.run(_show(client, job))
    except KeyboardInterrupt:
        console.print(f"\nLeft; {job} goes on.", highlight=False)
        return 130
    return _exit_code(client, job, console)


def command(config: SearchConfig, given: set[str]) -> list[str]:
    """The command line of the job: what was given here, by options or a file.

    Raises:
        ConfigError: A path that means another place on the cluster.
    """
    document = to_document(config)
    for name in ("data", "runs_dir", "cache_dir"):
        place = document[name]
        if name in given and "://" not in str(place) and not str(place).startswith("/"):
            raise ConfigError(
                f"{name} '{place}' is a path of this machine. On the cluster it takes a URL, or an "
                "absolute path that all hosts share."
            )
    words = ["python", "-m", "search.run"]
    for name in sorted(given - {"address"}):
        value = document[name]
        words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    if "runs_dir" not in given and default_runs_dir() != "runs":
        words.append(f"--runs_dir={default_runs_dir()}")
    return words


def _title(config: SearchConfig) -> str:
    return config.name or config.resume or config.extend or "search"


def _client(address: str) -> JobSubmissionClient:
    """Return the client of a dashboard that answers, with the token where it asks for one."""
    url = f"{address.rstrip('/')}/api/jobs/"
    request = urllib.request.Request(url, headers=_token())  # noqa: S310
    try:
        urllib.request.urlopen(request, timeout=_REACH_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(
                f"{address} does not accept this machine's token. It must be that of the cluster: "
                "copy the head's ~/.ray/auth_token here, or set RAY_AUTH_TOKEN."
            ) from error
        raise ConfigError(f"{address} is no Ray dashboard: it answers {error.code}.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise ConfigError(
            f"Cannot reach the Ray dashboard at '{address}': {why}. Is its port forwarded (ray "
            "dashboard cluster.yaml)?"
        ) from error
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (RuntimeError, ConnectionError) as error:
        raise ConfigError(f"{address} does not take jobs: {_line(error)}") from error


def _token() -> dict[str, str]:
    # Private: the headers that `JobSubmissionClient` sends. A public client for plain requests would replace it.
    with private_names("ray"):
        from ray._private.authentication.http_token_authentication import (
            get_auth_headers_if_auth_enabled,
        )

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    return dict(get_auth_headers_if_auth_enabled({}))


async def _show(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _exit_code(client: Any, job: str, console: Console) -> int:
    info = client.get_job_info(job)
    if str(info.status) == "SUCCEEDED":
        return 0
    if str(info.status) == "RUNNING":
        console.print(f"The connection was lost; {job} goes on.", highlight=False)
        return 130
    console.print(f"{job} {str(info.status).lower()}: {_line(info.message or '')}", highlight=False)
    return int(info.driver_exit_code or 1)


def _line(error: object) -> str:
    """The last line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
