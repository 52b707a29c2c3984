"""The web page at `/`: one prompt side by side to the base, adapters, blends and the router.

Its files hold nothing of this server, so they need no key; what the page shows comes over the API, with the key that
the person typed. All files are read at the start, which leaves no path to check later.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Header, HTTPException, Response

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept by the browser and asked for again with its ETag, so that an upgrade shows at once.
    "Cache-Control": "no-cache",
}


class _PageFile(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def _read(folder: Traversable, prefix: str = "") -> dict[str, _PageFile]:
    found = {}
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            found.update(_read(entry, f"{name}/"))
        elif media_type := _TYPES.get(name[name.rfind(".") :]):
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[name] = _PageFile(content, media_type, etag)
    return found


_FILES = _read(files("adapterhub.server") / "page")

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The page."""
    return _response("index.html", if_none_match)


@router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
async def page_file(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A script, style sheet or picture of the page."""
    return _response(name, if_none_match)


def _response(name: str, known_etag: str | None) -> Response:
    if name not in _FILES:
        raise HTTPException(404, "The page has no such file.")
    file = _FILES[name]
    headers = {**_HEADERS, "ETag": file.etag}
    if known_etag == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
