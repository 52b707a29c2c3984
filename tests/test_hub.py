"""The hub: requests with the echo engine, answers with a tiny base."""

import asyncio
import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterRegistry, AdapterRouter, EchoEngine, RouteDecision, SamplingParams
from adapterhub.base import BaseFingerprint
from adapterhub.errors import (
    AdapterDisabledError,
    AdapterIncompatibleError,
    AdapterNotFoundError,
    CapacityError,
    ConfigError,
    EngineError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.requests.preparing import RequestPreparer
from tests.tiny import make_adapter, make_base


def slots_in_use(hub: AdapterHub) -> tuple[int, int]:
    """The LoRA slots and KV slots of running requests."""
    stats = hub.stats()
    return stats.slot_users, stats.kv_slots


@pytest.fixture
def echo(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))


@pytest.fixture
def own_registry(tmp_path: Path, tiny_adapters: dict[str, Path]) -> AdapterRegistry:
    """A registry that the test may change."""
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", tiny_adapters["json"], routing={"examples": ["as json please"]})
    return registry


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tiny_registry: Path):
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, device="cpu") as hub:
        yield hub


@pytest.fixture(scope="module")
def exact(tiny_base: Path, tiny_registry: Path):
    """A hub on the unquantised base, where an adapter and its merged weights compute the same."""
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None, device="cpu") as hub:
        yield hub


class TestChoosing:
    def test_by_name_version_and_base(self, echo):
        for adapter, expected in [("json", "json@1"), ("json@1", "json@1"), (None, "base"), ("base", "base")]:
            assert echo.generate("Hi", adapter).text.startswith(f"[{expected}]")

    def test_an_answer_names_its_adapter_and_version(self, echo):
        answer = echo.generate("Hi", "json")
        assert (answer.adapter, answer.version, answer.route, answer.finish_reason) == (
            "json",
            1,
            None,
            "stop",
        )
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(answer.text)

    def test_auto_asks_the_router(self, echo):
        answer = echo.generate("the router shows an error", "auto")
        assert answer.adapter == "support"
        assert answer.route is not None
        assert answer.route.adapter == "support"

    def test_speed_is_the_engines_and_not_the_routers(self, echo, monkeypatch):
        monkeypatch.setattr(
            RequestPreparer,
            "route",
            lambda *_: time.sleep(0.2) or RouteDecision("json", 1.0, 0.5, "matched", {}),
        )
        stream = echo.stream("Hi", "auto")
        list(stream)
        for answer in (stream.result, echo.generate("Hi", "auto")):
            assert answer.adapter == "json"
            assert answer.usage.seconds < 0.1

    def test_auto_falls_back_to_the_base(self, echo):
        answer = echo.generate("Hello, how are you?", "auto")
        assert answer.adapter is None
        assert answer.route is not None
        assert answer.route.fallback

    def test_the_last_user_message_decides_the_route(self, echo):
        turns = [
            {"role": "user", "content": "the router shows an error"},
            {"role": "assistant", "content": "Restart it."},
            {"role": "user", "content": "now write a python function"},
        ]
        assert echo.route(turns).adapter == "code"

    def test_the_active_adapter_is_the_default(self, echo):
        assert echo.active_adapter is None
        echo.set_adapter("json")
        assert echo.generate("Hi").adapter == "json"
        with echo.using("code"):
            assert echo.generate("Hi").adapter == "code"
            assert echo.generate("Hi", None).adapter is None
        assert echo.generate("Hi").adapter == "json"
        for base in (None, "base"):
            echo.set_adapter(base)
            assert echo.active_adapter is None
            assert echo.generate("Hi").adapter is None

    def test_using_restores_after_an_error(self, echo):
        with pytest.raises(ZeroDivisionError), echo.using("json"):
            raise ZeroDivisionError
        assert echo.active_adapter is None

    def test_an_unknown_adapter_changes_nothing(self, echo):
        echo.set_adapter("json")
        with pytest.raises(AdapterNotFoundError, match="Did you mean 'code'"):
            echo.set_adapter("cod")
        assert echo.active_adapter == "json"
        with pytest.raises(AdapterNotFoundError):
            echo.generate("Hi", "cod")
        echo.set_adapter(None)

    def test_a_batch_takes_one_choice_or_one_each(self, echo):
        assert [a.adapter for a in echo.generate_batch(["a", "b"], "json")] == ["json", "json"]
        assert [a.adapter for a in echo.generate_batch(["a", "b"], ["json", None])] == ["json", None]
        with pytest.raises(InvalidRequestError, match="2 prompts and 1 adapter"):
            echo.generate_batch(["a", "b"], ["json"])
        assert echo.generate_batch([]) == []
        with pytest.raises(InvalidRequestError, match="not one text"):
            echo.generate_batch("ab", "json")

    async def test_a_batch_off_the_event_loop(self, echo):
        answers = await echo.agenerate_batch(["a", "b"], ["json", None], raw=True)
        assert [answer.text for answer in answers] == ["[json@1] a", "[base] b"]
        with echo.using("code"):
            assert [answer.adapter for answer in await echo.agenerate_batch(["a"])] == ["code"]
        with pytest.raises(InvalidRequestError, match="2 prompts and 1 adapter"):
            await echo.agenerate_batch(["a", "b"], ["json"])

    async def test_only_auto_waits_until_the_router_is_fitted(self, echo, monkeypatch):
        fit, may_fit = AdapterRouter.from_cards, threading.Event()

        def slowly(*arguments, **options):
            assert may_fit.wait(10)
            return fit(*arguments, **options)

        monkeypatch.setattr(AdapterRouter, "from_cards", slowly)
        prompt = "the router shows an error"
        waiting = [
            asyncio.ensure_future(echo.agenerate(prompt, "auto")),
            asyncio.ensure_future(echo.agenerate_batch([prompt], ["auto"])),
            asyncio.ensure_future(anext(echo.astream(prompt, "auto"))),
        ]
        await asyncio.sleep(0)
        assert (await asyncio.wait_for(echo.agenerate("Hi", "json"), 5)).adapter == "json"
        with echo.using("code"):
            assert (await asyncio.wait_for(echo.agenerate_batch(["Hi"]), 5))[0].adapter == "code"
        assert not any(task.done() for task in waiting)
        may_fit.set()
        one, (other,), delta = await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert one.adapter == other.adapter == "support"
        assert one.text.startswith(delta)

    def test_threads_and_tasks_keep_their_own(self, echo):
        seen: dict[str, str | None] = {}

        def work(name: str) -> None:
            echo.set_adapter(name)
            time.sleep(0.01)
            seen[name] = echo.generate("Hi").adapter

        threads = [threading.Thread(target=work, args=(name,)) for name in ("json", "code", "support")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {"json": "json", "code": "code", "support": "support"}
        assert echo.active_adapter is None

        async def task(name: str) -> str | None:
            with echo.using(name):
                await asyncio.sleep(0.01)
                return (await echo.agenerate("Hi")).adapter

        async def tasks() -> list[str | None]:
            return await asyncio.gather(*map(task, ("json", "code", "support")))

        assert asyncio.run(tasks()) == ["json", "code", "support"]

    def test_switching_takes_less_than_50_microseconds(self, hub):
        hub.set_adapter("json")
        hub.set_adapter("code")
        rounds = []
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(50):
                hub.set_adapter("json")
                hub.set_adapter("code")
            rounds.append((time.perf_counter() - started) / 100)
        hub.set_adapter(None)
        assert min(rounds) < 50e-6


class TestPrompts:
    def test_a_text_is_one_user_message(self, echo):
        assert echo.generate("Hi", "json").text == "[json@1] ### Instruction:\nHi\n\n### Response:\n"

    def test_raw_takes_the_text_as_it_stands(self, echo):
        assert echo.generate("Hi", "json", raw=True).text == "[json@1] Hi"
        for wrong in ([{"role": "user", "content": "Hi"}], ""):
            with pytest.raises(InvalidRequestError, match="raw"):
                echo.generate(wrong, "json", raw=True)

    def test_the_cards_profile_counts_and_the_caller_wins(self, own_registry):
        own_registry.update(
            "json",
            prompt={
                "system": "Be brief.",
                "format": "plain",
                "stop": ["Resp"],
                "generation": {"max_tokens": 30},
            },
        )
        hub = AdapterHub(EchoEngine(), own_registry)
        assert hub.generate("Hi", "json").text == "[json@1] Be brief.\nInstruction"
        assert hub.generate("Hi", "json", max_tokens=99).text == "[json@1] Be brief."
        assert "plain" in hub.prompt_style("json").format
        assert hub.prompt_style(None).origin == "default"

    def test_stop_strings_of_caller_card_and_prompt_format_add_up(self, own_registry):
        own_registry.update("json", prompt={"stop": ["card"], "generation": {"stop": ["default"]}})
        hub, ask = AdapterHub(EchoEngine(), own_registry), {"adapter": "json", "stop": ["mine"]}
        for end in ("card", "default", "mine"):
            assert hub.generate(f"x {end} y", raw=True, **ask).text == "[json@1] x "
            assert hub.generate(f"x {end} y", "json", SamplingParams(stop="mine"), raw=True).text.endswith(
                "x "
            )
        assert hub.generate("Hi", **ask).text == "[json@1] ### Instruction:\nHi\n\n### Response:\n"
        two = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
        assert hub.generate(two, **ask).text == "[json@1] ### Instruction:\none\n"

    @pytest.mark.parametrize("empty", ["", " ", []])
    def test_an_empty_prompt_is_an_error(self, echo, empty):
        with pytest.raises(InvalidRequestError, match="empty"):
            echo.generate(empty, "json")

    def test_a_lone_surrogate_is_an_error(self, hub, monkeypatch):
        monkeypatch.setattr(hub.engine.tokenizer, "chat_template", "{{ tools[0]['name'] }}")
        for arguments in ({"raw": True}, {"raw": False}):
            with pytest.raises(InvalidRequestError, match="Unicode"):
                hub.generate("\udcff", "json", **arguments)
        with pytest.raises(InvalidRequestError, match="Unicode"):
            hub.generate("Hi", "json", tools=[{"name": "\udcff"}])

    def test_too_long_a_prompt_is_an_error(self, echo):
        with pytest.raises(RequestTooLongError, match="context"):
            echo.generate("x" * 10_000, "json")

    def test_a_wrong_argument_is_an_error(self, echo):
        with pytest.raises(InvalidRequestError, match="tempreature"):
            echo.generate("Hi", "json", tempreature=1)


class TestOptions:
    def test_sampling_params_win_over_the_card_and_single_options_over_them(self, own_registry):
        own_registry.update("json", prompt={"generation": {"max_tokens": 3, "stop": ["x"]}})
        hub, params = AdapterHub(EchoEngine(), own_registry), SamplingParams(max_tokens=5)
        assert hub.generate("abx", "json", raw=True).text == "[js"
        assert hub.generate("abx", "json", params, raw=True).text == "[json"
        assert hub.generate("abx", "json", params, raw=True, max_tokens=99).text == "[json@1] ab"
        assert "".join(hub.stream("abx", "json", params, raw=True)) == "[json"
        assert hub.generate_batch(["abx"], "json", params, raw=True)[0].text == "[json"

    async def test_all_six_take_sampling_params(self, echo):
        params = SamplingParams(max_tokens=2)
        assert (await echo.agenerate("Hi", None, params)).text == "[b"
        assert (await echo.agenerate_batch(["Hi"], None, params))[0].text == "[b"
        assert "".join([delta async for delta in echo.astream("Hi", None, params)]) == "[b"

    def test_an_unknown_option_is_refused_by_all_six_before_anything_runs(self, echo):
        for ask in (echo.generate, echo.generate_batch, echo.stream, echo.astream):
            with pytest.raises(InvalidRequestError, match="Did you mean 'temperature'"):
                ask("Hi", None, tempreature=1)
        for ask in (echo.agenerate, echo.agenerate_batch):
            with pytest.raises(InvalidRequestError, match="Did you mean 'temperature'"):
                asyncio.run(ask("Hi", None, tempreature=1))

    def test_sampling_params_as_the_adapter_are_refused(self, echo):
        for ask in (echo.generate, lambda *given: echo.generate_batch(["Hi"], *given[1:])):
            with pytest.raises(InvalidRequestError, match="takes a reference or None, not SamplingParams"):
                ask("Hi", SamplingParams())

    def test_vllm_names_of_output_formats(self, hub):
        answer = hub.generate("Hi", "json", choice=["yes", "no"])
        assert answer.text in ("yes", "no")
        assert hub.generate("Hi", "json", choices=["yes", "no"]).text == answer.text
        assert hub.generate("Hi", "json", json={"type": "boolean"}).parsed in (True, False)


class RecordingEngine(EchoEngine):
    """Records what is pinned and loaded, and the priorities of requests; pins at most one adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[str] = []
        self.preloaded: list[str] = []
        self.priorities: list[int] = []

    def pin(self, adapter, pinned=True):
        if self.pinned:
            raise CapacityError("Too many are pinned.")
        self.pinned.append(adapter.name)

    def preload(self, adapter):
        self.preloaded.append(adapter.name)

    def generate(self, requests):
        self.priorities += [request.priority for request in requests]
        return super().generate(requests)


class TestServingOnTheCard:
    @pytest.fixture
    def registry(self, tmp_path, tiny_registry) -> AdapterRegistry:
        shutil.copytree(tiny_registry, tmp_path / "copy")
        return AdapterRegistry(tmp_path / "copy")

    def test_pinned_and_preload_adapters_are_loaded_when_a_hub_starts(self, registry):
        registry.update("json", serving={"pinned": True})
        registry.update("code", serving={"preload": True})
        hub = AdapterHub(engine := RecordingEngine(), registry)
        assert engine.pinned == ["json@1"]
        assert engine.preloaded == ["code@1", "json@1"]
        registry.update("code", status="disabled")
        AdapterHub(engine := RecordingEngine(), registry)
        assert engine.preloaded == ["json@1"]
        assert hub.generate("Hi", "json").adapter == "json"

    def test_pinning_more_than_fits_is_a_warning(self, registry, caplog):
        for name in ("json", "code"):
            registry.update(name, serving={"pinned": True})
        hub = AdapterHub(engine := RecordingEngine(), registry)
        assert engine.pinned == engine.preloaded == ["code@1"]
        assert "json@1 is not loaded at start: Too many are pinned." in caplog.text
        assert hub.generate("Hi", "json").adapter == "json"

    def test_an_adapter_for_another_base_is_not_loaded(self, registry, tmp_path):
        registry.update("json", serving={"pinned": True})
        engine = RecordingEngine()
        engine.fingerprint = BaseFingerprint.of(make_base(tmp_path / "other", seed=9))
        AdapterHub(engine, registry)
        assert engine.pinned == engine.preloaded == []

    def test_the_cards_priority_is_the_default_of_a_request(self, registry):
        registry.update("json", serving={"priority": 3})
        hub = AdapterHub(engine := RecordingEngine(), registry)
        hub.generate("Hi", "json")
        hub.generate("Hi", "json", priority=0)
        hub.generate("Hi", "code")
        hub.generate_batch(["Hi", "Hi"], ["json", None])
        hub.generate("Hi", "json:0.7+code:0.3")
        assert engine.priorities == [3, 0, 0, 3, 0, 3]


class TestRegistryChanges:
    def test_a_new_version_is_served_by_the_next_request(self, own_registry, tiny_adapters):
        hub = AdapterHub(EchoEngine(), own_registry)
        assert hub.generate("Hi", "json").version == 1
        own_registry.register("json", tiny_adapters["code"])
        assert hub.generate("Hi", "json").version == 2
        assert hub.generate("Hi", "json@1").version == 1

    def test_the_router_follows_the_registry(self, own_registry, tiny_adapters):
        hub = AdapterHub(EchoEngine(), own_registry)
        assert hub.route("write a python function").adapter is None
        own_registry.register(
            "code", tiny_adapters["code"], routing={"examples": ["write a python function"]}
        )
        assert hub.route("write a python function").adapter == "code"

    def test_a_disabled_adapter_is_not_served(self, own_registry):
        own_registry.update("json", status="disabled")
        with pytest.raises(AdapterDisabledError):
            AdapterHub(EchoEngine(), own_registry).generate("Hi", "json")

    def test_a_removed_adapter_is_not_served(self, own_registry):
        hub = AdapterHub(EchoEngine(), own_registry)
        hub.set_adapter("json")
        own_registry.remove("json")
        with pytest.raises(AdapterNotFoundError):
            hub.generate("Hi")


class TestStreams:
    def test_deltas_and_result(self, echo):
        stream = echo.stream("Hi", "json")
        assert stream.result is None
        text = "".join(stream)
        assert stream.result is not None
        assert (stream.result.text, stream.result.adapter) == (text, "json")
        assert text == echo.generate("Hi", "json").text

    def test_an_error_is_raised_before_the_first_delta(self, echo):
        with pytest.raises(AdapterNotFoundError):
            echo.stream("Hi", "nothing")
        with pytest.raises(InvalidRequestError, match="n must be 1"):
            echo.stream("Hi", "json", n=2)

    def test_leaving_the_block_aborts(self, echo):
        with echo.stream("Hi", "json") as stream:
            next(stream)
        assert list(stream) == []
        assert stream.result is None

    def test_async(self, echo):
        async def collect() -> str:
            return "".join([delta async for delta in echo.astream("Hi", "json")])

        assert asyncio.run(collect()) == echo.generate("Hi", "json").text

    async def test_leaving_an_async_block_aborts(self, echo):
        async with echo.astream("Hi", "json") as stream:
            assert await anext(stream) == "["
        assert [delta async for delta in stream] == []
        assert stream.result is None
        async with echo.astream("Hi", "json") as stream:
            text = "".join([delta async for delta in stream])
        assert stream.result is not None
        assert stream.result.text == text

    def test_a_cancelled_task_ends_its_answer(self, hub):
        async def first_then_cancel() -> None:
            async def read() -> None:
                async for _ in hub.astream("Hi", "json", ignore_eos=True, max_tokens=200):
                    started.set()

            started = asyncio.Event()
            task = asyncio.create_task(read())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(first_then_cancel())
        # The current step ends first; then the sequence releases its slots.
        deadline = time.monotonic() + 5
        while slots_in_use(hub) != (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slots_in_use(hub) == (0, 0)


class TestOnATinyBase:
    def test_adapters_differ_and_the_base_stays_itself(self, hub):
        settings = {"max_tokens": 12, "ignore_eos": True}
        base = hub.generate("Hi", None, **settings)
        answers = {name: hub.generate("Hi", name, **settings).text for name in ("json", "code", "support")}
        assert len({base.text, *answers.values()}) == 4
        assert hub.generate("Hi", None, **settings).completions == base.completions

    def test_a_mixed_batch_keeps_the_order_of_its_prompts(self, hub):
        names = ["json", None, "code", "json", "support"]
        answers = hub.generate_batch(["Hi"] * 5, names, max_tokens=1, ignore_eos=True)
        alone = {name: hub.generate("Hi", name, max_tokens=1, ignore_eos=True).text for name in set(names)}
        assert [answer.adapter for answer in answers] == names
        assert [answer.text for answer in answers] == [alone[name] for name in names]

    def test_concurrent_tasks(self, hub):
        settings = {"max_tokens": 8, "ignore_eos": True}
        expected = [hub.generate("Hi", name, **settings).text for name in ("json", "code")]

        async def both() -> list[str]:
            answers = await asyncio.gather(*(hub.agenerate("Hi", n, **settings) for n in ("json", "code")))
            return [answer.text for answer in answers]

        assert asyncio.run(both()) == expected

    def test_an_adapter_for_another_base_is_refused(self, tmp_path, tiny_registry):
        other = make_base(tmp_path / "other", seed=9)
        with (
            AdapterHub.from_pretrained(other, tiny_registry) as hub,
            pytest.raises(AdapterIncompatibleError, match="other weights"),
        ):
            hub.generate("Hi", "json")

    def test_an_adapter_for_another_base_is_no_candidate_of_the_router(
        self, tmp_path, tiny_registry, own_registry
    ):
        other = make_base(tmp_path / "other", seed=9)
        examples = {"examples": ["write a python function"]}
        own_registry.register("code", make_adapter(tmp_path / "a", other), base=other, routing=examples)
        shutil.copytree(tiny_registry / "support", own_registry.root / "support")
        with AdapterHub.from_pretrained(other, own_registry.root) as hub:
            assert hub.route("write a python function").scores.keys() == {"code", "json"}
            assert hub.generate("the router shows an error", "auto", max_tokens=1).adapter != "support"

    def test_the_base_is_the_one_that_the_cards_name(self, tiny_base, tiny_registry):
        with AdapterHub.from_pretrained(registry=tiny_registry) as hub:
            assert hub.engine.base_name == str(tiny_base)

    def test_the_cards_base_is_loaded_at_their_revision(self, own_registry, monkeypatch):
        for path in own_registry.root.glob("*/1/card.json"):
            card = json.loads(path.read_text())
            card["base"] = {**card["base"], "name": "organisation/base", "revision": "v1"}
            path.write_text(json.dumps(card))
        asked = {}
        monkeypatch.setattr(
            "adapterhub.base.loading.load_base",
            lambda name, **settings: asked.update(settings, name=name) or 1 / 0,
        )
        for given, expected in ({}, "v1"), ({"revision": "v2"}, "v2"), ({"base": "other/base"}, None):
            with pytest.raises(ZeroDivisionError):
                AdapterHub.from_pretrained(registry=own_registry.root, **given)
            assert (asked["name"], asked["revision"]) == (given.get("base", "organisation/base"), expected)

    def test_an_empty_registry_names_no_base(self, tmp_path):
        with pytest.raises(ConfigError, match="No base"):
            AdapterHub.from_pretrained(registry=tmp_path)

    def test_a_closed_hub_refuses(self, tiny_base, tiny_registry):
        hub = AdapterHub.from_pretrained(tiny_base, tiny_registry)
        hub.close()
        with pytest.raises(EngineError, match="closed"):
            hub.generate("Hi", None)
        with pytest.raises(EngineError, match="closed"):
            asyncio.run(hub.agenerate("Hi", None))


class TestMerge:
    PROMPTS = ("Hi", "Hello there", "one two three", "the quick brown fox")

    def test_the_merged_model_answers_as_the_adapter_does(self, exact, tmp_path):
        report = exact.merge("json", tmp_path / "merged")
        assert report.adapter == "json@1"
        assert report.verification.merged.kl_divergence < 1e-6
        with AdapterHub.from_pretrained(
            tmp_path / "merged", exact.registry.root, quantization=None
        ) as merged:
            answers = [merged.generate(prompt, None, max_tokens=12).text for prompt in self.PROMPTS]
        assert answers == [exact.generate(prompt, "json", max_tokens=12).text for prompt in self.PROMPTS]
        assert answers != [exact.generate(prompt, "code", max_tokens=12).text for prompt in self.PROMPTS]

    def test_a_blend_is_merged_with_the_options(self, exact, tmp_path):
        report = exact.merge("json:0.6+code:0.4", tmp_path / "merged", dtype="float16")
        assert (report.adapter, report.dtypes) == ("json@1:0.6+code@1:0.4", ("F16",))
        assert report.verification.merged.kl_divergence < 1e-5

    @pytest.mark.parametrize(
        ("given", "on_card", "expected"), [("v2", "v1", "v2"), (None, "v1", "v1"), (None, None, None)]
    )
    def test_the_bases_revision_is_the_hubs_or_the_cards(
        self, own_registry, tiny_base, tmp_path, monkeypatch, given, on_card, expected
    ):
        path = own_registry.root / "json" / "1" / "card.json"
        card = json.loads(path.read_text())
        card["base"] = {**card.get("base", {}), "name": "echo", "revision": on_card}
        path.write_text(json.dumps(card))
        asked = []
        monkeypatch.setattr(
            "adapterhub.base.locating.locate_base",
            lambda name, *, revision=None: asked.append((name, revision)) or tiny_base,
        )
        AdapterHub(EchoEngine(), own_registry, revision=given).merge("json", tmp_path / "merged")
        assert asked == [("echo", expected)]

    def test_the_live_base_is_not_touched(self, exact, tmp_path):
        before = exact.generate("Hi", None, max_tokens=8, ignore_eos=True).completions
        exact.merge("json", tmp_path / "merged")
        assert exact.generate("Hi", None, max_tokens=8, ignore_eos=True).completions == before
