"""Which URLs open a registry, and that none with a secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adapterhub import AdapterRegistry, ConfigError
from adapterhub.config import HubConfig
from adapterhub.registry.remote import RemoteRegistry, open_registry
from adapterhub.registry.remote.urls import RegistryUrl


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://my-bucket/team=a/v1.2", "gs://my-bucket/team=a/v1.2"),
        ("hf://organisation/name@v1", "hf://organisation/name@v1"),
    ],
)
def test_urls(text: str, parsed: str):
    assert str(RegistryUrl.parse(text)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIASECRET:secret/key@bucket/a",
        "s3://AKIASECRET@bucket/a",
        "s3://bucket/a?X-Amz-Signature=secret",
        "s3://bucket/a#secret",
        "s3://bucket/../secret",
        "S3://bucket/secret",
        "s3://bucket//secret",
        "s3://",
        "s3://bucket/sec ret",
        "s3://bucket/sec\nret",
        "s3://bucket" + "/secret" * 20,
    ],
)
def test_other_urls_are_refused_and_not_shown(text: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        open_registry(text, cache=tmp_path)
    assert "secret" not in str(error.value).lower().replace("aws_secret", "")
    assert error.value.hint


def test_slugs_are_different_and_safe():
    slugs = {RegistryUrl.parse(text).slug for text in ("s3://a/b", "s3://a-b", "gs://a/b", "s3://A/b")}
    assert len(slugs) == 4
    assert all("/" not in slug for slug in slugs)


def test_a_path_opens_a_folder(tmp_path: Path):
    assert type(open_registry(tmp_path)) is AdapterRegistry
    assert type(open_registry(str(tmp_path))) is AdapterRegistry


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ConfigError) as error:
        open_registry("gs://bucket/a", cache=tmp_path)
    assert error.value.hint == "pip install gcsfs"


def test_an_unknown_store_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no store ftpx://"):
        open_registry("ftpx://bucket/a", cache=tmp_path)


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_folder_is_given_as_a_path(protocol: str, tmp_path: Path):
    """fsspec would take it as relative to the working directory."""
    with pytest.raises(ConfigError, match="folder of this machine"):
        open_registry(f"{protocol}://{tmp_path}", cache=tmp_path)


def test_a_url_is_no_folder():
    with pytest.raises(ConfigError) as error:
        AdapterRegistry("s3://bucket/a")
    assert "open_registry" in str(error.value.hint)


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: MemoryFileSystem, **options: object) -> None:
        raise ValueError("account_key=secret")

    monkeypatch.setattr(MemoryFileSystem, "__init__", refuse)
    with pytest.raises(ConfigError, match=r"memory://a could not be opened \(ValueError\)") as error:
        open_registry("memory://a", cache=tmp_path)
    assert "secret" not in str(error.value)
    assert error.value.__suppress_context__


def test_settings_take_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert HubConfig.load(registry="s3://bucket/a").registry == "s3://bucket/a"
    assert HubConfig.load(registry="adapters").registry == Path("adapters")
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", "memory://a")
    assert HubConfig.load().registry == "memory://a"
    (tmp_path / "adapterhub.yaml").write_text("registry: s3://bucket/b\n")
    monkeypatch.delenv("ADAPTERHUB_REGISTRY")
    assert HubConfig.load(tmp_path).registry == "s3://bucket/b"


def test_the_cache_is_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path))
    registry = open_registry("memory://a/b")
    assert isinstance(registry, RemoteRegistry)
    assert registry.root.parent == tmp_path / "registries"
    assert repr(registry) == "RemoteRegistry('memory://a/b')"
