"""A Ray on this machine, and an application of two replicas over engines without a model."""

from __future__ import annotations

import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")  # Ray 2.60 uses what pydantic has deprecated
    import ray
    from ray import serve

ROOT = Path(__file__).parents[3]
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else it writes a token into the home folder
    "PYTHONPATH": str(ROOT),  # replicas import the tests' hubs
}


@dataclass(frozen=True)
class Running:
    """An application that runs.

    Attributes:
        url: Of the application, behind Ray's proxy.
        registry: The adapters of all replicas.
    """

    url: str
    registry: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def replica_processes(self) -> list[int]:
        """The process ids of the replicas that were started."""
        return [int(path.name) for path in replicas_folder(self.registry).iterdir()]


def replicas_folder(registry: Path) -> Path:
    """Where each replica of `recording.open_hub` leaves its process id."""
    return registry.parent / "replicas"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def serve_url() -> Iterator[str]:
    """Ray with Serve, on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        port = free_port()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="session")
def running(serve_url: str, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """Two replicas of `recording.open_hub`, a front, and a copy of the shipped adapters."""
    return start(
        serve_url, tmp_path_factory.mktemp("served"), "/", replicas=2, num_cpus=0.5, max_batch_size=8
    )


def start(serve_url: str, folder: Path, route_prefix: str, **arguments: object) -> Running:
    """Starts an application over `recording.open_hub`, with a copy of the shipped adapters in a folder."""
    from adapterhub.deploy.ray import ApplicationConfig
    from adapterhub.deploy.ray.application import application
    from tests.deploy.ray.recording import open_hub

    registry = shutil.copytree(ROOT / "adapters", folder / "adapters")
    replicas_folder(registry).mkdir()
    config = ApplicationConfig.model_validate({"engine": "echo", "registry": registry, **arguments})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = route_prefix.strip("/") or "hub"
        serve.run(application(config, open_hub), name=name, route_prefix=route_prefix)
    return Running(f"{serve_url}{route_prefix}".rstrip("/"), registry)
