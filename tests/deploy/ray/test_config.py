"""The arguments of the application, without Ray."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from adapterhub.deploy.ray import ApplicationConfig
from adapterhub.errors import ConfigError


def config(**arguments: str) -> ApplicationConfig:
    """As `serve run` makes it: every value is a text."""
    return ApplicationConfig.model_validate(arguments)


def test_texts_of_the_command_line_become_settings_of_application_hub_and_server():
    made = config(replicas="2", num_cpus="0.5", max_batch_size="8", quantization="none", access_log="false")
    assert (made.replicas, made.num_cpus) == (2, 0.5)
    assert (made.hub.max_batch_size, made.hub.quantization) == (8, None)
    assert made.server.access_log is False


@pytest.mark.parametrize(
    ("engine", "urls"),
    [
        ("transformers", []),
        ("echo", []),
        ("http://one:8000", ["http://one:8000"]),
        ("http://one:8000,http://two:8000", ["http://one:8000", "http://two:8000"]),
        ("http://one:8000,", ["http://one:8000"]),
    ],
)
def test_urls_are_an_engine_too(engine: str, urls: list[str]):
    made = config(engine=engine)
    assert made.urls == urls
    assert made.hub.engine == ("transformers" if engine == "echo" else engine)


def test_llama_cpp_is_the_hubs_engine():
    assert config(engine="llama.cpp").hub.engine == "llama.cpp"


def test_replicas_see_the_same_paths_as_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "keys.txt").write_text("key secret\n")
    monkeypatch.chdir(tmp_path)
    arguments = {
        "registry": "adapters",
        "base": "base",
        "api_key_file": "keys.txt",
        "adapter_folders": ["a", "/b"],
    }
    made = ApplicationConfig.model_validate(arguments).resolved()
    assert made.hub.registry == tmp_path / "adapters"
    assert made.hub.base == str(tmp_path / "base")
    assert made.server.api_key_file == tmp_path / "keys.txt"
    assert made.server.adapter_folders == (tmp_path / "a", Path("/b"))


def test_names_and_urls_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = config(registry="s3://bucket/adapters", base="adapterhub-demo").resolved()
    assert made.hub.registry == "s3://bucket/adapters"
    assert made.hub.base == "adapterhub-demo"


def test_replicas_get_what_the_builders_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_MAX_BATCH_SIZE", "4")
    made = config().resolved()
    monkeypatch.delenv("ADAPTERHUB_MAX_BATCH_SIZE")
    assert made.hub.max_batch_size == 4


@pytest.mark.parametrize("argument", [{}, {"engine": "echo"}])
def test_the_builders_environment_names_the_engine_unless_an_argument_does(
    monkeypatch: pytest.MonkeyPatch, argument: dict[str, str]
):
    monkeypatch.setenv("ADAPTERHUB_ENGINE", "http://one:8000,http://two:8000")
    made = config(**argument).resolved()
    monkeypatch.delenv("ADAPTERHUB_ENGINE")
    assert made.engine == argument.get("engine", "http://one:8000,http://two:8000")
    assert len(made.urls) == (0 if argument else 2)


def test_the_engine_of_neither_is_transformers():
    assert config().resolved().engine == "transformers"


def test_an_unknown_argument_is_refused_by_name():
    with pytest.raises(ConfigError, match="no replica"):
        config(replica="2").resolved()


@pytest.mark.parametrize("name", ["host", "port", "keep_alive_seconds"])
def test_what_rays_proxy_decides_is_refused(name: str):
    with pytest.raises(ConfigError, match=f"proxy decides {name}"):
        config(**{name: "1"}).resolved()


def test_a_bad_value_of_the_hub_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="max_batch_size"):
        config(max_batch_size="0").resolved()
    with pytest.raises(ConfigError, match="engine"):
        config(engine="onnx").resolved()


def test_at_most_fewer_replicas_than_at_least():
    with pytest.raises(ValidationError, match="less than replicas"):
        config(replicas="3", max_replicas="2")
