"""The HTTP server: OpenAI's API over a hub. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.server.app import create_app
    from adapterhub.server.config import ServerConfig
    from adapterhub.server.running import serve

_EXPORTS = {
    "ServerConfig": "adapterhub.server.config",
    "create_app": "adapterhub.server.app",
    "serve": "adapterhub.server.running",
}

__all__ = ["ServerConfig", "create_app", "serve"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
