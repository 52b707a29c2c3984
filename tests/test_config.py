from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub import HubConfig
from adapterhub.config import EngineLimits, registry_location
from adapterhub.errors import ConfigError


def test_an_argument_wins_over_environment_over_file_over_default(tmp_path: Path, monkeypatch):
    assert HubConfig.load(tmp_path).device == "auto"
    (tmp_path / "adapterhub.yaml").write_text("device: cuda\nmax_batch_size: 3\n")
    assert HubConfig.load(tmp_path).device == "cuda"
    monkeypatch.setenv("ADAPTERHUB_DEVICE", "cuda:1")
    assert HubConfig.load(tmp_path).device == "cuda:1"
    config = HubConfig.load(tmp_path, device="cpu")
    assert (config.device, config.max_batch_size) == ("cpu", 3)


@pytest.mark.parametrize("value", [None, "none"])
def test_quantisation_can_be_switched_off(tmp_path: Path, value):
    assert HubConfig.load(tmp_path, quantization=value).quantization is None


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("devise: cpu", "devise"),
        ("max_batch_size: 0", "max_batch_size"),
        ("- a list", "name: value"),
        ("{", "YAML"),
        ("base: " + "[" * 5000, "nested too deep"),
        ("base: 2024-13-45", "does not fit its type"),
        ("base: !!bool maybe", "does not fit its type"),
        ("base: !!timestamp never", "does not fit its type"),
        ("base: \0", "characters that YAML does not allow"),
        ("a: b\nbase: secret-token: x", "line 2, column 19"),
        ("1: cpu", "1"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(tmp_path: Path, content, word):
    (tmp_path / "adapterhub.yaml").write_text(content)
    with pytest.raises(ConfigError, match=word):
        HubConfig.load(tmp_path)


def test_where_the_registry_is(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert registry_location() == tmp_path / "data" / "adapterhub" / "adapters"
    (tmp_path / "adapters").mkdir()
    assert registry_location() == Path("adapters")
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tmp_path / "shared"))
    assert registry_location() == tmp_path / "shared"
    assert registry_location(Path("mine")) == Path("mine")


@pytest.mark.parametrize(
    "settings", [{"max_loras": 0}, {"max_batch_size": 32, "max_num_batched_tokens": 16}], ids=str
)
def test_limits_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError, match="max_"):
        EngineLimits(**settings)


def test_vllms_max_num_seqs_is_accepted(tmp_path: Path, monkeypatch):
    assert HubConfig.load(tmp_path, max_num_seqs=7).limits.max_batch_size == 7
    assert HubConfig(max_num_seqs=7).max_batch_size == 7
    assert EngineLimits(max_num_seqs=7) == EngineLimits(max_batch_size=7)
    assert replace(EngineLimits(max_num_seqs=7), max_loras=3).max_batch_size == 7
    (tmp_path / "adapterhub.yaml").write_text("max_num_seqs: 3\n")
    assert HubConfig.load(tmp_path).max_batch_size == 3
    assert HubConfig.load(tmp_path, max_batch_size=4).max_batch_size == 4
    monkeypatch.setenv("ADAPTERHUB_MAX_NUM_SEQS", "5")
    assert HubConfig.load(tmp_path).max_batch_size == 5


def test_both_names_of_one_setting_are_an_error(tmp_path: Path):
    both = {"max_num_seqs": 7, "max_batch_size": 8}
    for make in (EngineLimits, HubConfig, lambda **settings: HubConfig.load(tmp_path, **settings)):
        with pytest.raises(ValueError, match="max_num_seqs and max_batch_size mean the same"):
            make(**both)


def test_an_empty_variable_counts_as_not_given(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_MAX_LORAS", "")
    assert HubConfig.load(tmp_path).max_loras == 16


def test_a_file_that_is_too_large_is_refused(tmp_path: Path):
    (tmp_path / "adapterhub.yaml").write_text("# \n" * (1 << 19))
    with pytest.raises(ConfigError, match="at most 1,048,576 are read"):
        HubConfig.load(tmp_path)


def test_the_limits_come_from_the_settings(tmp_path):
    assert HubConfig.load(tmp_path, max_loras=3, kv_cache_mib=7).limits == EngineLimits(
        max_loras=3, kv_cache_mib=7
    )
