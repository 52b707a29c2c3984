"""The server as an application of Ray Serve: `serve run adapterhub.deploy.ray:app`. Needs the extra `ray`.

A request passes Ray's HTTP proxy, a front that reads which adapter it is for, and one of the replicas. Each replica is
a hub behind the same FastAPI application as `adapterhub serve`. Names are imported when first used (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.deploy.ray.application import app
    from adapterhub.deploy.ray.config import ApplicationConfig

_EXPORTS = {
    "ApplicationConfig": "adapterhub.deploy.ray.config",
    "app": "adapterhub.deploy.ray.application",
}

__all__ = ["ApplicationConfig", "app"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
