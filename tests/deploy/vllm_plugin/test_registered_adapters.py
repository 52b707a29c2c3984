"""Which adapters a name in a request to vLLM may mean, without vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry
from adapterhub.deploy.vllm_plugin.registered_adapters import RegisteredAdapters
from adapterhub.deploy.vllm_plugin.settings import PluginSettings
from adapterhub.errors import (
    AdapterDisabledError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    ConfigError,
    InvalidRequestError,
)
from adapterhub.peft_format import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.remote import RemoteRegistry, open_registry, sync_registry
from adapterhub.vllm.adapter_names import AdapterName
from tests.tiny import make_adapter, make_base


@pytest.fixture
def registry(tmp_path: Path, tiny_base: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    for seed in (1, 2):
        registry.register(
            "json", make_adapter(tmp_path / f"json-{seed}", tiny_base, seed=seed), base=tiny_base
        )
    registry.alias("json", "prod", 1)
    return registry


def adapters(registry: AdapterRegistry, **settings: str) -> RegisteredAdapters:
    return RegisteredAdapters(PluginSettings(str(registry.root), **settings))  # type: ignore[arg-type]


def pinned_name(registry: AdapterRegistry, version: int) -> str:
    return str(
        AdapterName("json", version, registry.get(f"json@{version}").digest.removeprefix("sha256:")[:8])
    )


def test_names_of_one_version_are_its_folder(registry: AdapterRegistry, tiny_base: Path):
    found, base = adapters(registry), str(tiny_base)
    for version in (1, 2):
        folder = (registry.root / "json" / str(version)).resolve()
        assert found.folder(f"json@{version}", base) == folder
        assert found.folder(pinned_name(registry, version), base) == folder


def test_a_name_with_another_digest_is_no_adapter(registry: AdapterRegistry, tiny_base: Path):
    other = pinned_name(registry, 2).replace("--v2-", "--v1-")
    assert adapters(registry).folder(other, str(tiny_base)) is None


@pytest.mark.parametrize(
    "model", ["sql", "json@9", "json@canary", "sql--v1-00000000", "../json", "", "a" * 300]
)
def test_what_the_registry_does_not_have_is_no_adapter(
    registry: AdapterRegistry, tiny_base: Path, model: str
):
    assert adapters(registry, names="any").folder(model, str(tiny_base)) is None


@pytest.mark.parametrize(("model", "version"), [("json", 2), ("json@prod", 1), ("json@latest", 2)])
def test_names_that_move_are_taken_only_where_they_are_allowed(
    registry: AdapterRegistry, tiny_base: Path, model: str, version: int
):
    with pytest.raises(InvalidRequestError, match="may come to mean another version") as refused:
        adapters(registry).folder(model, str(tiny_base))
    assert f"'json@{version}'" in str(refused.value.hint)
    folder = adapters(registry, names="any").folder(model, str(tiny_base))
    assert folder == (registry.root / "json" / str(version)).resolve()


def test_changed_files_are_refused(registry: AdapterRegistry, tiny_base: Path):
    weights = registry.root / "json" / "2" / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AdapterInvalidError, match="digest differs"):
        adapters(registry).folder("json@2", str(tiny_base))
    assert adapters(registry).folder("json@1", str(tiny_base)) is not None


def test_a_disabled_version_is_refused(registry: AdapterRegistry, tiny_base: Path):
    registry.update("json@1", status="disabled")
    with pytest.raises(AdapterDisabledError):
        adapters(registry).folder("json@1", str(tiny_base))


def test_what_vllm_does_not_run_is_refused_with_what_helps(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    registry.register("dora", make_adapter(tmp_path / "dora", tiny_base, use_dora=True), base=tiny_base)
    with pytest.raises(
        AdapterIncompatibleError, match="dora@1 does not run on vllm: it uses DoRA"
    ) as refused:
        adapters(registry).folder("dora@1", str(tiny_base))
    assert "--dora svd" in str(refused.value.hint)


def test_an_adapter_of_another_base_is_refused(registry: AdapterRegistry, tiny_base: Path, tmp_path: Path):
    other = make_base(tmp_path / "other", seed=5)
    for served in (str(other), "organisation/other"):
        with pytest.raises(AdapterIncompatibleError, match="does not belong to the base that vLLM serves"):
            adapters(registry).folder("json@1", served)


def test_another_form_of_the_base_is_taken_if_its_name_is_given(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    quantised = str(make_base(tmp_path / "quantised", seed=5))
    name = registry.get("json").base.name
    assert name is not None
    assert adapters(registry, base=name).folder("json@1", quantised) is not None
    with pytest.raises(AdapterIncompatibleError, match="not 'another'"):
        adapters(registry, base="another").folder("json@1", str(tiny_base))


def test_an_adapter_whose_base_is_unknown_is_refused(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    folder = make_adapter(tmp_path / "loose", tiny_base)
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    (folder / "README.md").unlink()  # PEFT writes the base's name into it, too
    registry.register("loose", folder)
    with pytest.raises(AdapterIncompatibleError, match="its base is None"):
        adapters(registry).folder("loose@1", str(tiny_base))


def test_an_adapter_that_is_registered_later_is_found(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    found = adapters(registry)
    assert found.folder("json@3", str(tiny_base)) is None
    registry.register("json", make_adapter(tmp_path / "json-3", tiny_base, seed=3), base=tiny_base)
    assert found.folder("json@3", str(tiny_base)) == (registry.root / "json" / "3").resolve()


def test_the_settings_are_the_environment_s():
    assert PluginSettings.of({}) is None
    assert PluginSettings.of({"ADAPTERHUB_REGISTRY": ""}) is None
    assert PluginSettings.of({"ADAPTERHUB_REGISTRY": "/r", "ADAPTERHUB_BASE": ""}) == PluginSettings("/r")
    everything = {
        "ADAPTERHUB_REGISTRY": "/r",
        "ADAPTERHUB_BASE": "adapterhub-demo",
        "ADAPTERHUB_VLLM_NAMES": "any",
        "ADAPTERHUB_REGISTRY_CACHE_MIB": "64",
    }
    assert PluginSettings.of(everything) == PluginSettings("/r", "adapterhub-demo", "any", 64)
    for wrong in ("0", "-1", "1.5", "much"):
        with pytest.raises(ConfigError, match="ADAPTERHUB_REGISTRY_CACHE_MIB"):
            PluginSettings.of({"ADAPTERHUB_REGISTRY": "/r", "ADAPTERHUB_REGISTRY_CACHE_MIB": wrong})
    with pytest.raises(ConfigError, match="'all'"):
        PluginSettings.of({"ADAPTERHUB_REGISTRY": "/r", "ADAPTERHUB_VLLM_NAMES": "all"})


def test_it_finds_an_adapter_without_what_vllm_pins_otherwise(registry: AdapterRegistry, tiny_base: Path):
    code = """if True:
        import sys

        for name in "torch transformers peft safetensors gguf huggingface_hub click httpx yaml fsspec".split():
            sys.modules[name] = None  # importing it fails
        from adapterhub.deploy.vllm_plugin.registered_adapters import RegisteredAdapters
        from adapterhub.deploy.vllm_plugin.settings import PluginSettings

        root, base = sys.argv[1:]
        print(RegisteredAdapters(PluginSettings(root)).folder("json@1", base))
    """
    command = [sys.executable, "-c", code, registry.root, tiny_base]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((registry.root / "json" / "1").resolve())


def test_a_registry_at_a_url_downloads_what_belongs_to_the_base(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    store = open_registry(url)
    assert isinstance(store, RemoteRegistry)
    try:
        sync_registry(registry, store, ["json"])
        opened: dict[str, object] = {}
        monkeypatch.setattr(
            "adapterhub.deploy.vllm_plugin.registered_adapters.open_registry",
            lambda _, **settings: opened.update(settings) or store,
        )
        settings = PluginSettings(url, registry_cache_mib=3)
        found, other = RegisteredAdapters(settings), make_base(tmp_path / "other", seed=5)
        assert opened == {"max_cache_bytes": 3 * 2**20}
        with pytest.raises(AdapterIncompatibleError, match="does not belong to the base"):
            found.folder("json@1", str(other))
        assert not list((tmp_path / "cache").rglob(WEIGHTS_FILE))
        folder = found.folder(pinned_name(registry, 1), str(tiny_base))
        assert folder is not None
        assert (folder / WEIGHTS_FILE).read_bytes() == (
            registry.root / "json" / "1" / WEIGHTS_FILE
        ).read_bytes()
        assert len(list((tmp_path / "cache").rglob(WEIGHTS_FILE))) == 1
    finally:
        store.close()
