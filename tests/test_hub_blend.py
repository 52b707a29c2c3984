"""Blends through the hub: wherever an adapter can be named, per request and stored."""

import shutil
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import AdapterIncompatibleError, AdapterNotFoundError, InvalidRequestError
from tests.tiny import make_adapter, make_base

BLEND, RESOLVED = "support:0.3+json:0.7", "json@1:0.7+support@1:0.3"


@pytest.fixture
def echo(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))


@pytest.fixture(scope="module")
def registry(tmp_path_factory, tiny_registry: Path, tiny_base: Path) -> AdapterRegistry:
    """A registry that this module may change, with an adapter that uses DoRA."""
    root = tmp_path_factory.mktemp("blends") / "registry"
    shutil.copytree(tiny_registry, root)
    registry = AdapterRegistry(root)
    dora = make_adapter(tmp_path_factory.mktemp("blends") / "dora", tiny_base, seed=9, use_dora=True)
    registry.register("dora", dora, base=tiny_base)
    return registry


@pytest.fixture(scope="module")
def hub(tiny_base: Path, registry: AdapterRegistry):
    with AdapterHub.from_pretrained(tiny_base, registry.root, quantization=None, device="cpu") as hub:
        yield hub


class TestAsking:
    def test_every_method_takes_a_blend(self, echo):
        assert echo.generate("Hi", BLEND).text.startswith(f"[{RESOLVED}]")
        assert list(echo.stream("Hi", BLEND))
        batch = echo.generate_batch(["a", "b", "c"], [BLEND, "code", None])
        assert [answer.adapter for answer in batch] == [RESOLVED, "code", None]
        with echo.using(BLEND):
            assert echo.active_adapter == BLEND
            assert echo.generate("Hi").adapter == RESOLVED
        echo.set_adapter(BLEND)
        assert echo.generate("Hi").adapter == RESOLVED
        echo.set_adapter(None)

    def test_an_answer_names_the_parts_with_their_versions(self, echo):
        answer = echo.generate("Hi", BLEND)
        assert (answer.adapter, answer.version, answer.route) == (RESOLVED, None, None)
        assert echo.generate("Hi", answer.adapter).text == answer.text

    def test_one_part_with_the_weight_1_is_that_adapter(self, echo):
        answer = echo.generate("Hi", "json:1")
        assert (answer.adapter, answer.version) == ("json", 1)

    @pytest.mark.parametrize(
        ("wanted", "error"),
        [
            ("json:0.7+jsn:0.3", AdapterNotFoundError),
            ("json:0.7+auto:0.3", InvalidRequestError),
            ("json:0.7+base:0.3", InvalidRequestError),
            ("json:nan", InvalidRequestError),
            ("json+json", InvalidRequestError),
        ],
    )
    def test_bad_blends_change_nothing(self, echo, wanted, error):
        echo.set_adapter("json")
        for ask in (echo.set_adapter, lambda wanted: echo.generate("Hi", wanted)):
            with pytest.raises(error):
                ask(wanted)
        with pytest.raises(error), echo.using(wanted):
            pass
        assert echo.active_adapter == "json"
        echo.set_adapter(None)

    def test_the_prompt_is_written_as_for_the_heaviest_part(self, tmp_path, tiny_adapters):
        registry = AdapterRegistry(tmp_path / "registry")
        for name in ("json", "support"):
            prompt = {
                "system": f"I am {name}.",
                "stop": [f"<{name}>"],
                "generation": {"max_tokens": len(name) + 30},
            }
            registry.register(name, tiny_adapters[name], prompt=prompt)
        hub = AdapterHub(EchoEngine(), registry)
        assert (
            "I am json." in hub.generate("Hi", "support:0.2+json:0.3").text + hub.generate("Hi", "json").text
        )
        for wanted, leader in [("support:0.2+json:0.3", "json"), ("support:0.2+json:-3", "support")]:
            text = hub.generate("Hi", wanted, max_tokens=200).text
            assert f"I am {leader}." in text
            assert hub.prompt_style(wanted) == hub.prompt_style(leader)

    def test_a_part_for_another_base_is_refused(self, hub, registry, tmp_path):
        other = make_base(tmp_path / "other", seed=5)
        registry.register("foreign", make_adapter(tmp_path / "foreign", other), base=other)
        with pytest.raises(AdapterIncompatibleError, match="another base"):
            hub.generate("Hi", "json:0.7+foreign:0.3")
        registry.remove("foreign")


def answers(hub: AdapterHub, adapter: str) -> list[tuple[int, ...]]:
    prompts = ["Hi", "the quick brown fox", "one two three"]
    batch = hub.generate_batch(prompts, adapter, max_tokens=16, temperature=0, ignore_eos=True)
    return [answer.completions[0].token_ids for answer in batch]


class TestServing:
    def test_a_stored_blend_answers_as_the_blend_in_the_request(self, hub):
        card = hub.blend("helper", {"json": 0.7, "support": 0.3})
        assert card.ref == "helper@1"
        expected = answers(hub, BLEND)
        assert answers(hub, "helper") == expected
        assert answers(hub, "json:0.3+support:0.7") != expected
        assert answers(hub, "json") != expected

    def test_in_4_bits_and_float32_a_stored_blend_has_the_probabilities_of_the_one_in_the_request(
        self, tiny_base, registry
    ):
        settings = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 1}
        with AdapterHub.from_pretrained(
            tiny_base, registry.root, device="cpu", compute_dtype="float32"
        ) as hub:
            stored = hub.blend("exact", {"json": 0.7, "support": 0.3}).ref
            found = [
                [token.logprob for token in hub.generate("Hi", one, **settings).completions[0].logprobs]
                for one in (stored, BLEND)
            ]
            dtypes = (hub.stats().compute_dtype, hub.stats().matmul_dtype)
        assert dtypes == ("float32", "float32")
        assert found[0] == pytest.approx(found[1], abs=1e-4)
        assert len(found[0]) == 12

    def test_a_blend_shares_a_batch_with_its_parts(self, hub):
        adapters = [BLEND, "json", None, "support", "json+support:-0.5"]
        settings = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
        batch = hub.generate_batch(["Hi"] * len(adapters), adapters, **settings)
        alone = [hub.generate("Hi", one, **settings) for one in adapters]
        assert [a.text for a in batch] == [a.text for a in alone]

    def test_a_part_at_weight_0_does_nothing(self, hub):
        assert answers(hub, "json:1+support:0") == answers(hub, "json")

    def test_dora_is_blended_in_a_request(self, hub):
        assert answers(hub, "dora:1+json:0") == answers(hub, "dora")
        assert answers(hub, "dora:0+json:1") == answers(hub, "json")
        assert answers(hub, "dora:0.5+json:0.5") != answers(hub, "json")

    def test_a_rank_beyond_the_limit_fails_only_that_request(self, tiny_base, registry):
        with AdapterHub.from_pretrained(
            tiny_base, registry.root, quantization=None, device="cpu", max_lora_rank=8
        ) as hub:
            with pytest.raises(AdapterIncompatibleError, match="rank is 12"):
                hub.generate("Hi", BLEND)
            assert hub.generate("Hi", "json", max_tokens=2).adapter == "json"

    def test_a_blend_can_be_unloaded(self, hub):
        hub.generate("Hi", BLEND, max_tokens=2)
        hub.unload(BLEND)
        assert hub.generate("Hi", BLEND, max_tokens=2).adapter == RESOLVED

    def test_hub_blend_checks_its_settings(self, hub):
        for settings in ({"method": "mean"}, {"rank": 4}, {"method": "ties"}, {"seed": 1}):
            with pytest.raises(InvalidRequestError):
                hub.blend("bad", {"json": 1, "code": 1}, **settings)
        with pytest.raises(AdapterNotFoundError):
            hub.registry.resolve("bad")
