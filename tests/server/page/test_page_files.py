"""The page's files over HTTP: what is served, with which headers, and what is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import adapterhub.server
from adapterhub.server.routes import page

FOLDER = Path(adapterhub.server.__file__).parent / "page"


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


def test_the_page_and_all_that_it_names_are_served(client: TestClient):
    html = client.get("/")
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:href|src)="([^"]+)"', html.text)
    assert sorted(named) == ["page/app.js", "page/icon.svg", "page/page.css"]
    for path in named:
        assert client.get(f"/{path}").content == (FOLDER / path.removeprefix("page/")).read_bytes()


def test_every_module_that_another_imports_is_served_as_one(client: TestClient):
    imported = {
        name
        for path in FOLDER.glob("*.js")
        for name in re.findall(r'from "\./([^"]+)"', path.read_text("utf-8"))
    }
    assert "vendor/htm-preact-3.1.1.js" in imported
    for name in imported:
        answer = client.get(f"/page/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/page.css"])
def test_a_browser_may_load_and_run_nothing_from_elsewhere(client: TestClient, path: str):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_has_neither_inline_script_nor_style_nor_another_host():
    html = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", html)
    for path in [*FOLDER.glob("*.*"), *FOLDER.glob("vendor/*.js")]:
        hosts = set(re.findall(r"https?://[\w.]+", path.read_text("utf-8"))) - {"http://www.w3.org"}
        assert not hosts, path


def test_what_a_model_wrote_never_becomes_markup():
    for path in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", path.read_text("utf-8")
        )


def test_the_key_is_kept_nowhere_but_in_memory():
    for path in FOLDER.glob("*.js"):
        assert not re.search(r"localStorage|sessionStorage|indexedDB|\.cookie\b", path.read_text("utf-8"))


def test_an_unchanged_file_is_not_sent_again(client: TestClient):
    etag = client.get("/page/app.js").headers["etag"]
    again = client.get("/page/app.js", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    assert client.get("/page/app.js", headers={"If-None-Match": '"another"'}).status_code == 200
    assert client.head("/page/app.js").headers["etag"] == etag


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/none.js",
        "/page/../routes/page.py",
        "/page/%2e%2e/routes/page.py",
        "/page/..%2f..%2fhub.py",
        "/page//etc/passwd",
        "/page/__init__.py",
        "/page/vendor/README.md",
    ],
)
def test_only_the_pages_own_files_are_served(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_vendored_code_comes_with_its_licences():
    licences = {path.name: path.read_text("utf-8") for path in FOLDER.glob("vendor/LICENSE-*")}
    assert "Apache License" in licences["LICENSE-htm"]
    assert "The MIT License" in licences["LICENSE-preact"]
    assert "Jason Miller" in licences["LICENSE-preact"]
