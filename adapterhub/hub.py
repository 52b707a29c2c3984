"""The hub: one base, a registry of adapters, a router and an engine behind one class.

A request's path: text -> `route` (only for `adapter="auto"`) -> `registry.resolve` -> the card's prompt profile
renders token ids -> the engine -> `Generation`.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

from adapterhub.config import HubConfig
from adapterhub.engine.interface import Completion, Engine, TokenOutput
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.engine.stats import EngineStats
from adapterhub.errors import AdapterHubError, ConfigError, InvalidRequestError
from adapterhub.lora.blending.resolving import SingleAdapter, resolve_adapter
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.registry import AdapterCard, AdapterRegistry
from adapterhub.registry.references import check_reference
from adapterhub.registry.remote import configured_registry
from adapterhub.requests.executor import RequestExecutor
from adapterhub.requests.generation import Generation
from adapterhub.requests.options import BatchGenerationOptions, GenerationOptions, RequestOptions
from adapterhub.requests.preparing import PreparedRequest, Prompt, RequestPreparer, names_adapter
from adapterhub.requests.prompts import PromptStyle
from adapterhub.requests.streaming import AsyncGenerationStream, GenerationStream
from adapterhub.requests.template_options import TemplateArguments
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.filters import RouteFilter
from adapterhub.routing.router import AdapterRouter

if TYPE_CHECKING:
    from adapterhub.export.merge import MergeOptions, MergeReport
    from adapterhub.llama_cpp.conversion import FileType
    from adapterhub.lora.blending.methods import BlendMethod
    from adapterhub.registry import CardFields

_log = logging.getLogger(__name__)


class _ActiveAdapter:
    """The default of `adapter=`: the adapter that `set_adapter` or `using` chose. None already means the bare base."""

    def __repr__(self) -> str:
        return "ACTIVE"


ACTIVE: Final = _ActiveAdapter()
AdapterChoice = str | None | _ActiveAdapter
Tools = Sequence[Mapping[str, Any]] | None
Result = TypeVar("Result")


class AdapterHub:
    """Serves any registered adapter on one base.

    Make one with `AdapterHub.from_pretrained`; this constructor takes the parts, for tests and other engines. Adapters
    whose cards say `serving.pinned` or `serving.preload` are loaded now. Any thread may call any method.

    Args:
        engine: Generates the answers; `EchoEngine()` needs no model.
        registry: The adapters.
        router: Arguments of `AdapterRouter.from_cards`, such as `policy`, `fallback`, `log` or `encoder`.
        revision: The revision of the base on the Hugging Face Hub, which `merge` takes the 16-bit weights of.
    """

    def __init__(
        self,
        engine: Engine,
        registry: AdapterRegistry,
        *,
        router: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self.registry = registry
        self._engine = engine
        self._revision = revision
        self._active: ContextVar[str | None] = ContextVar("active_adapter", default=None)
        self._resolved: set[str] = set()  # references that `set_adapter` has resolved
        self._preparer = RequestPreparer(registry, engine, router)
        self._executor = RequestExecutor()
        self._release_heap: Callable[[], object] = lambda: None
        self._preload()

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | None = None,
        registry: str | Path | None = None,
        *,
        router: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Loads a base and opens a registry.

        What exists by then is left out of Python's garbage collections until the hub is closed (`gc.freeze`), since a
        full one stops all threads for tenths of a second; unless the process has frozen objects itself.

        Args:
            base: `"adapterhub-demo"`, a folder, a GGUF file or a hub id; if not given, the base that the
                registry's cards name.
            registry: The folder of adapters or a URL such as `s3://bucket/prefix`; if not given, see
                `HubConfig.registry`.
            router: As for the constructor.
            **settings: Further fields of `HubConfig`, such as `quantization="nf4"`, `device="auto"`, or
                `engine="llama.cpp"`. For vLLM servers see `connect`.

        Raises:
            ConfigError: A setting is not valid, or the base cannot be loaded or is not known.
        """
        config = HubConfig.load(base=str(base) if base else None, registry=registry, **settings)
        adapters = configured_registry(config)
        # torch and transformers take seconds to import, so everything above has been checked first.
        make_engine, revision = _engine_maker(config, adapters)
        from adapterhub.engine.frozen_heap import FrozenHeap

        heap = FrozenHeap()  # before the hub and the engine exist, which are garbage one day
        try:
            engine = make_engine()
            hub = cls(engine, adapters, router=router, revision=revision)
        except BaseException:
            heap.release()  # else the base that was loaded stays for ever
            raise
        release = hub._release_heap = weakref.finalize(hub, heap.release)
        release.atexit = False
        return hub

    @classmethod
    def connect(
        cls,
        urls: str | Sequence[str],
        registry: str | Path | None = None,
        *,
        base: str | Path | None = None,
        router: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Opens a registry over vLLM servers; `from_pretrained` with their URLs as the engine.

        Adapters are loaded there at their first use, so the servers must see the registry's folder at the same path. No
        weights are loaded here. For other limits and time-outs make a `VLLMEngine` and give it to the constructor.

        Args:
            urls: One URL, or several servers with the same base, such as `"http://host:8000"`.
            registry: As for `from_pretrained`.
            base: The base, for its tokenizer and identity; if not given, the one that the registry's cards name, or
                else what the servers were given as `--model`.
            router: As for the constructor.
            **settings: Further fields of `HubConfig`: `revision`, `generation_config`, `max_queue`,
                `max_num_seqs` (requests that a server has at a time), `max_cpu_loras` (adapters that it has loaded),
                `max_lora_rank` (the servers' `--max-lora-rank`, to which blends are cut).

        Raises:
            ConfigError: A URL or a setting is not valid, or the base is not the servers'.
            EngineError: No server answers as vLLM does.
        """
        engine = urls if isinstance(urls, str) else ",".join(urls)
        if not engine.startswith("http"):  # the names of engines in this process
            raise ConfigError("A vLLM server's URL is like http://host:8000.")
        return cls.from_pretrained(base, registry, router=router, engine=engine, **settings)

    @property
    def engine(self) -> Engine:
        """The engine that generates the answers."""
        return self._engine

    # Choosing an adapter

    @property
    def active_adapter(self) -> str | None:
        """The adapter of requests that name none, in this thread or task; None is the bare base."""
        return self._active.get()

    def set_adapter(self, adapter_name: str | None) -> None:
        """Chooses the adapter of requests that name none, in this thread or asyncio task.

        Moves no weights. Other threads and tasks keep theirs; tasks started from here inherit this one.

        Args:
            adapter_name: `"name"`, `"name@3"`, `"name@alias"`, a blend such as `"json:0.7+support:0.3"`, `"auto"`, or
                None for the bare base.

        Raises:
            AdapterNotFoundError: There is no such adapter; nothing is changed.
            AdapterDisabledError: It is disabled.
            InvalidRequestError: The text is not a reference.
        """
        self._active.set(self._checked(adapter_name))

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[Self]:
        """Chooses an adapter for a `with` block and restores the previous one; see `set_adapter`."""
        token = self._active.set(self._checked(adapter))
        try:
            yield self
        finally:
            self._active.reset(token)

    @property
    def router(self) -> AdapterRouter:
        """The router, up to date with the registry.

        Raises:
            RoutingError: No card of an adapter for this base has anything to route by.
        """
        return self._preparer.router

    def route(self, prompt: Prompt, *, where: RouteFilter | None = None) -> RouteDecision:
        """Chooses the adapter for a prompt among those made for this base.

        Args:
            prompt: A text or messages; the last message of the user counts.
            where: Narrows the adapters that may be chosen; all of them if not given.

        Raises:
            InvalidRequestError: The prompt is empty.
            RoutingError: No card of an adapter for this base has anything to route by.
        """
        return self._preparer.route(prompt, where)

    # Answering

    def generate(
        self,
        prompt: Prompt,
        adapter: AdapterChoice = ACTIVE,
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Answers one prompt.

        Args:
            prompt: A text (one user message) or a conversation as a list of `{"role", "content"}` messages; with `raw`
                also a list of token ids.
            adapter: `"name"`, `"name@3"`, `"name@alias"`, a blend such as `"json:0.7+support:0.3"` (the weighted sum),
                `"auto"` (the router chooses), None or `"base"` (the bare base); if not given, the active adapter.
            sampling_params: Sampling settings; of these only the fields that were set count. They win over the defaults
                of the adapter's card, and those over the base's `generation_config.json`; stop strings add up.
            raw: Take the text or token ids without chat template or system prompt.
            tools: JSON-Schema descriptions of functions for the chat template.
            **options: Fields of `SamplingParams`, which win over `sampling_params`. Of the chat template:
                `chat_template_kwargs` (variables such as `enable_thinking`), `continue_final_message` (the answer goes
                on with the last message), `add_generation_prompt`. For structured output one of
                `schema` (a pydantic model or another type, or a JSON Schema), `regex`, `grammar` (Lark) or `choices`
                (a list of texts), see `OutputFormat.of`; vLLM's names `json` and `choice` are accepted. `priority`:
                a whole number, higher ones start first where requests wait; the card's `serving.priority` if not given.
                `where`: a `RouteFilter` that narrows the adapters that `"auto"` may choose. `user`: a text such as a
                user's id, whose requests one version of an alias answers where several share them.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            AdapterIncompatibleError: It does not fit this base.
            AdapterDisabledError: It is disabled.
            RoutingError: The router has nothing to choose by.
            RequestTooLongError: Prompt and answer do not fit the context, or `max_tokens` is less than the shortest
                answer of that output format.
            InvalidRequestError: An empty prompt, an option that is not valid, or an output format that cannot be
                enforced.
            CapacityError: The waiting queue is full.
            GenerationError: Generation failed.
            EngineClosedError: The hub is closed.
        """
        request_options = RequestOptions.of(options, sampling_params, raw=raw, tools=tools)
        prepared = self._prepare(prompt, adapter, request_options)
        started = time.perf_counter()
        (completions,) = self._engine.generate([prepared.request])
        return prepared.generation(completions, time.perf_counter() - started)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        adapters: AdapterChoice | Sequence[str | None] = ACTIVE,
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[BatchGenerationOptions],
    ) -> list[Generation]:
        """Answers several prompts, each with its own adapter.

        Args:
            prompts: Texts or conversations.
            adapters: One choice for all, or one for each prompt; see `generate`.
            sampling_params: As in `generate`, for all prompts.
            raw: As in `generate`.
            tools: As in `generate`.
            **options: As in `generate`, for all prompts; an output format may also be a list with one or None for each
                prompt, `choices` then a list of lists.

        Raises:
            InvalidRequestError: There are not as many adapters as prompts.
            AdapterHubError: As `generate`, for any of the prompts; there are no answers then.
        """
        request_options = RequestOptions.of(options, sampling_params, raw=raw, tools=tools)
        prepared = self._prepare_batch(prompts, adapters, request_options)
        started = time.perf_counter()
        completions = self._engine.generate([one.request for one in prepared])
        return _generations(prepared, completions, time.perf_counter() - started)

    def stream(
        self,
        prompt: Prompt,
        adapter: AdapterChoice = ACTIVE,
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationStream:
        """Streams the answer to one prompt; arguments and errors as in `generate`.

        Returns:
            An iterator of text; its `result` is the `Generation` once it has ended.
        """
        request_options = RequestOptions.of(options, sampling_params, raw=raw, tools=tools)
        request_options.check_single_completion()
        prepared = self._prepare(prompt, adapter, request_options)
        return GenerationStream(_stream(prepared, self._engine.stream(prepared.request)))

    async def agenerate(
        self,
        prompt: Prompt,
        adapter: AdapterChoice = ACTIVE,
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """As `generate`, without blocking the event loop; cancelling the task cancels the answer."""
        request_options = RequestOptions.of(options, sampling_params, raw=raw, tools=tools)
        prepared = await self._prepare_off_loop(self._prepare, prompt, adapter, request_options)
        started = time.perf_counter()
        (completions,) = await self._engine.agenerate([prepared.request])
        return prepared.generation(completions, time.perf_counter() - started)

    async def agenerate_batch(
        self,
        prompts: Sequence[Prompt],
        adapters: AdapterChoice | Sequence[str | None] = ACTIVE,
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[BatchGenerationOptions],
    ) -> list[Generation]:
        """As `generate_batch`, without blocking the event loop; cancelling the task cancels the answers."""
        request_options = RequestOptions.of(options, sampling_params, raw=raw, tools=tools)
        prepared = await self._prepare_off_loop(self._prepare_batch, prompts, adapters, request_options)
        started = time.perf_counter()
        completions = await self._engine.agenerate([one.request for one in prepared])
        return _generations(prepared, completions, time.perf_counter() - started)

    def astream(
        self,
        prompt: Prompt,
        adapter: AdapterChoice = ACTIVE,
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncGenerationStream:
        """As `stream`, without blocking the event loop; leaving its `async with` block aborts the answer.

        Returns:
            An asynchronous iterator of text; its `result` is the `Generation` once it has ended. `await start()` queues
            the request, so that what is wrong with it raises before the first text; `chunks()` gives all `n`
            completions side by side, with token ids, log-probabilities and finish reasons.
        """
        request_options = RequestOptions.of(options, sampling_params, raw=raw, tools=tools)
        prepare = partial(self._prepare_off_loop, self._prepare, prompt, adapter, request_options)
        return AsyncGenerationStream(prepare, self._engine)

    def encode_prompt(
        self,
        prompt: Prompt,
        adapter: AdapterChoice = ACTIVE,
        *,
        raw: bool = False,
        tools: Tools = None,
        **options: Unpack[TemplateArguments],
    ) -> list[int]:
        """The token ids that `generate` sends to the base, for counting tokens or for another engine.

        Args:
            prompt: As in `generate`.
            adapter: As in `generate`; its card's prompt profile counts.
            raw: As in `generate`.
            tools: As in `generate`.
            **options: The options of the chat template, as in `generate`.

        Raises:
            AdapterHubError: As `generate`; whether an answer fits the context is not checked.
        """
        request_options = RequestOptions.of(options, raw=raw, tools=tools)
        return self._preparer.encode(prompt, self._chosen(adapter), request_options)

    # Adapters

    def prompt_style(self, adapter: str | None) -> PromptStyle:
        """The format of an adapter's prompts, and its origin: the card, the tokenizer or the default."""
        return self._preparer.prompt_style(adapter)

    def blend(
        self,
        name: str,
        weights: Mapping[str, float],
        *,
        method: BlendMethod = "cat",
        rank: int | None = None,
        density: float | None = None,
        seed: int | None = None,
        **fields: Unpack[CardFields],
    ) -> AdapterCard:
        """Blends registered adapters into a new one and registers it, with its lineage; no model is needed.

        For a blend in one request only, write `adapter="json:0.7+support:0.3"` there.

        Args:
            name: The new adapter's name; one that exists gets its next version.
            weights: Reference -> weight, from -10 to 10; up to 8.
            method: `"cat"` is the exact sum, its rank the sum of ranks; `"svd"` (or `"linear"`) is that sum's best
                approximation of a rank; `"ties"` and `"dare_ties"` merge sparsely. See `BlendSettings`.
            rank: The rank of the result, for all methods but `"cat"`; if not given, the highest of the parts.
            density: For `"ties"` and `"dare_ties"`: the share of entries to keep, above 0 and up to 1.
            seed: For `"dare_ties"`: seed of the random entries to drop; 0 if not given.
            **fields: What to write on the card, as in `AdapterRegistry.register`; without a prompt profile, that of the
                part with the largest weight.

        Raises:
            AdapterNotFoundError: A part is not registered; nothing is stored.
            AdapterIncompatibleError: The parts belong to different bases, or one uses DoRA.
            InvalidRequestError: A name, a weight or a setting is not valid.
        """
        from adapterhub.lora.blending.methods import BlendSettings
        from adapterhub.lora.blending.registering import blend_adapters

        settings = BlendSettings(method, rank, density, seed)
        return blend_adapters(self.registry, name, weights, settings, **fields)

    def merge(self, name: str, out: str | Path, **options: Unpack[MergeOptions]) -> MergeReport:
        """Writes a standalone model: the base's 16-bit weights with an adapter merged in.

        The live base is not touched. See `adapterhub.export.merge_adapter`.

        Args:
            name: The adapter, or a blend such as `"json:0.7+support:0.3"`.
            out: A folder that does not exist yet, or is empty.
            **options: `dtype`, `exact`, `max_shard_size` and others, as in `merge_adapter`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            AdapterIncompatibleError: It is for another base.
            ConfigError: The base's 16-bit weights cannot be found or read.
            ExportError: The merge failed; nothing was written.
        """
        from adapterhub.base.locating import locate_base
        from adapterhub.export.adapter_part import adapter_folders
        from adapterhub.export.merge import merge_adapter

        resolved, base = resolve_adapter(name, self.registry.resolve), self._engine.base_name
        revision = self._revision or resolved.main_card.base.revision_of(base)
        folder = locate_base(base, revision=revision)
        return merge_adapter(folder, adapter_folders(self.registry, name), out, **options)

    # PEFT's names

    def load_adapter(
        self, model_id: str | Path, adapter_name: str, **fields: Unpack[CardFields]
    ) -> AdapterCard:
        """Registers an adapter and loads it; PEFT's `load_adapter`.

        Unlike in PEFT, the registry stores a copy, and a name that exists gets its next version.

        Args:
            model_id: A PEFT folder or a hub id, as `path` of `AdapterRegistry.register`.
            adapter_name: The name to register it under.
            **fields: What to write on the card.

        Returns:
            The new version's card.

        Raises:
            AdapterInvalidError: The files are damaged or unsafe; nothing is stored.
            AdapterIncompatibleError: It does not fit this base, and nothing is stored; or its rank is above
                `max_lora_rank`, and it is registered but not loaded.
            InvalidRequestError: The name, the path or a field is not valid.
        """
        base = self._engine.base_name if self._engine.fingerprint else None
        card = self.registry.register(adapter_name, model_id, base=base, **fields)
        self._engine.preload(self._preparer.lora_request(card.ref))
        return card

    def delete_adapter(self, adapter_name: str, *, force: bool = False) -> None:
        """Removes an adapter from the registry, from disk and from memory; PEFT's `delete_adapter`.

        To free memory only, call `unload`.

        Args:
            adapter_name: `"name"` (every version), `"name@3"` or `"name@alias"`.
            force: Remove also what an alias points to.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            AdapterExistsError: An alias points to it, and `force` is off.
        """
        name, at, _ = check_reference(adapter_name).partition("@")
        cards = [self.registry.get(adapter_name)] if at else self.registry.versions(name)
        loaded = [StoredLoraRequest.of(self.registry, card) for card in cards]
        self.registry.remove(adapter_name, force=force)
        self._resolved.clear()  # other references may point to a removed version too
        for adapter in loaded:
            self._engine.unload(adapter)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: BlendMethod = "svd",
        svd_rank: int | None = None,
        *,
        density: float | None = None,
        **fields: Unpack[CardFields],
    ) -> AdapterCard:
        """Blends registered adapters into a new one; PEFT's `add_weighted_adapter` in terms of `blend`.

        Args:
            adapters: References, up to 8.
            weights: One for each, from -10 to 10.
            adapter_name: The new adapter's name.
            combination_type: `method` of `blend`. `"linear"` sums the products `B @ A`, where PEFT sums A and B apart.
            svd_rank: `rank` of `blend`.
            density: As in `blend`.
            **fields: What to write on the card.

        Raises:
            InvalidRequestError: There are not as many weights as adapters, or a setting is not valid.
        """
        if len(adapters) != len(weights):
            raise InvalidRequestError(
                f"There are {len(adapters)} adapters and {len(weights)} weights.", hint="Give one each."
            )
        if len(set(adapters)) != len(adapters):
            raise InvalidRequestError(
                "The blend names an adapter twice.", hint="Give it one weight, the sum."
            )
        weighted = dict(zip(adapters, weights, strict=True))
        return self.blend(
            adapter_name, weighted, method=combination_type, rank=svd_rank, density=density, **fields
        )

    # The engine

    def stats(self) -> EngineStats:
        """The engine's current state: running requests, LoRA slots, memory, tokens per second."""
        return self._engine.stats()

    def fits_base(self, card: AdapterCard) -> bool:
        """Whether an adapter was made for the hub's base, as far as both are known.

        Args:
            card: The adapter's card.
        """
        return self._preparer.fits_base(card)

    def pin(self, name: str, pinned: bool = True) -> None:
        """Excludes an adapter from eviction once it is in a LoRA slot; does not load it.

        Args:
            name: The adapter.
            pinned: False makes it evictable again.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            CapacityError: Every slot would be pinned.
        """
        self._engine.pin(self._preparer.lora_request(name), pinned)

    def unload(self, name: str) -> None:
        """Frees an adapter's LoRA slot and memory once no running request needs it.

        The registry keeps it, and the next request loads it again.

        Args:
            name: The adapter.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        self._engine.unload(self._preparer.lora_request(name))

    def close(self) -> None:
        """Ends running requests and frees the engine. The registry stays usable."""
        self._engine.close()
        self._executor.close()
        self._release_heap()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _preload(self) -> None:
        """Loads adapters with `serving.pinned` or `serving.preload`; logs a failure, so that the others are served."""
        for card in self.registry.list():
            serving = card.serving
            load = card.status == "ready" and (serving.pinned or serving.preload)
            if not load or not self.fits_base(card):
                continue
            try:
                adapter = self._preparer.lora_request(card.ref)
                if serving.pinned:
                    self._engine.pin(adapter)
                self._engine.preload(adapter)
            except AdapterHubError as error:
                _log.warning("%s is not loaded at start: %s", card.ref, error)

    # Requests

    async def _run_off_loop(self, work: Callable[..., Result], *arguments: object) -> Result:
        """For this package only: prepares a request without blocking the event loop."""
        return await self._executor.run(work, *arguments)

    def _choose_version(self, reference: str, user: str | None) -> str:
        """For this package only: a reference to the version that answers a request of this user."""
        return self._preparer.choose_version(reference, user)

    def _count_prompt_tokens(
        self, messages: Sequence[Mapping[str, Any]], adapter: str | None, tools: Tools
    ) -> int:
        """For this package only: the number of prompt tokens of a conversation, which may be empty."""
        return self._preparer.count_tokens(messages, adapter, tools)

    async def _prepare_off_loop(
        self,
        prepare: Callable[..., Result],
        prompt: Any,
        adapters: AdapterChoice | Sequence[str | None],
        options: RequestOptions,
    ) -> Result:
        # Fitting the router takes seconds; only requests for "auto" wait for it.
        choices = adapters if isinstance(adapters, list | tuple) else [adapters]
        if not self._preparer.has_router and "auto" in map(self._chosen, choices):
            await self._executor.fit_router(lambda: self.router)
        return await self._executor.run(prepare, prompt, adapters, options)

    def _prepare(self, prompt: Prompt, adapter: AdapterChoice, options: RequestOptions) -> PreparedRequest:
        return self._preparer.prepare(prompt, self._chosen(adapter), options)

    def _prepare_batch(
        self,
        prompts: Sequence[Prompt],
        adapters: AdapterChoice | Sequence[str | None],
        options: RequestOptions,
    ) -> list[PreparedRequest]:
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            given = "one text" if isinstance(prompts, str) else f"a value of type {type(prompts).__name__}"
            raise InvalidRequestError(
                f"A batch takes a list of prompts, not {given}.", hint="generate() takes one."
            )
        choices = _one_each(prompts, adapters)
        output_formats = OutputFormat.each(len(prompts), **options.output_format)
        options = replace(options, output_format={})
        return [
            self._preparer.prepare(prompt, self._chosen(choice), options, output_format)
            for prompt, choice, output_format in zip(prompts, choices, output_formats, strict=True)
        ]

    def _chosen(self, adapter: AdapterChoice) -> str | None:
        if isinstance(adapter, _ActiveAdapter):
            return self.active_adapter
        if not isinstance(adapter, str | None):
            raise InvalidRequestError(
                f"adapter= takes a reference or None, not {type(adapter).__name__}.",
                hint="Sampling settings go to sampling_params=.",
            )
        return adapter

    def _checked(self, adapter: str | None) -> str | None:
        if not names_adapter(adapter):
            return None
        # Reading a card takes longer than a switch should, so a reference is resolved once here, and by each request.
        # Blends are not remembered: their number is unbounded.
        if (
            adapter != "auto"
            and adapter not in self._resolved
            and isinstance(self._preparer.resolve(adapter), SingleAdapter)
        ):
            self._resolved.add(adapter)
        return adapter


def _one_each(
    prompts: Sequence[Prompt], adapters: AdapterChoice | Sequence[str | None]
) -> Sequence[AdapterChoice]:
    if not isinstance(adapters, Sequence) or isinstance(adapters, str):
        return [adapters] * len(prompts)
    if len(adapters) != len(prompts):
        raise InvalidRequestError(
            f"There are {len(prompts)} prompts and {len(adapters)} adapters.", hint="Give one each."
        )
    return adapters


def _generations(
    prepared: Sequence[PreparedRequest], completions: Sequence[Sequence[Completion]], seconds: float
) -> list[Generation]:
    return [one.generation(of_one, seconds) for one, of_one in zip(prepared, completions, strict=True)]


def _stream(prepared: PreparedRequest, outputs: Iterator[TokenOutput]) -> Generator[str | Generation]:
    started, received = time.perf_counter(), []
    for output in outputs:
        received.append(output)
        if output.text:
            yield output.text
    yield prepared.generation([Completion.of(received)], time.perf_counter() - started)


def _engine_maker(config: HubConfig, registry: AdapterRegistry) -> tuple[Callable[[], Engine], str | None]:
    """What makes the engine of the settings, whose base is loaded by then; and the base's revision."""
    if config.engine.startswith("http"):
        from adapterhub.vllm.settings import connect_engine

        named, revision = _named_base(config, registry)
        return partial(connect_engine, config, registry, named, revision), revision
    name, revision = chosen_base(config, registry)
    make = _load_base(config, name, revision)
    return partial(make, config.limits, generation_config=config.generation_config), revision


def _load_base(config: HubConfig, name: str, revision: str | None) -> Callable[..., Engine]:
    """Loads a base; what makes an engine of it is returned."""
    if config.engine == "llama.cpp":
        from adapterhub.llama_cpp import LlamaCppEngine, load_gguf_base

        file_type = _file_type(config, name)
        base = load_gguf_base(name, file_type=file_type, device=config.device, revision=revision)
        return partial(LlamaCppEngine, base)
    from adapterhub.base.loading import load_base
    from adapterhub.engine.batching import BatchingEngine

    loaded = load_base(
        name,
        quantization=config.quantization,
        compute_dtype=config.compute_dtype,
        device=config.device,
        revision=revision,
        trust_remote_code=config.trust_remote_code,
    )
    return partial(
        BatchingEngine,
        loaded,
        prove_base=config.prove_base,
        batch_invariant=config.batch_invariant,
        use_cuda_graph=config.use_cuda_graph,
        async_scheduling=config.async_scheduling,
    )


def _file_type(config: HubConfig, name: str) -> FileType:
    """The type of the weights that llama.cpp gets; settings that were given and that it does not have are refused."""
    from adapterhub.base.locating import gguf_file

    given = config.model_dump(include=config.model_fields_set)
    if given.get("batch_invariant"):
        raise _no_setting("batch_invariant", True, "llama.cpp rounds by what else is in its batch.")
    for setting in ("compute_dtype", "trust_remote_code"):
        if given.get(setting) not in (None, "auto", False):
            raise _no_setting(
                setting, given[setting], "It computes as the types of the file's weights ask for."
            )
    quantization = given.get("quantization", "auto")
    if quantization == "auto":
        return "q8_0"
    if quantization and gguf_file(name):
        raise _no_setting("quantization", quantization, "The weights are stored as the GGUF file has them.")
    if quantization not in ("int8", None):
        raise _no_setting(
            "quantization",
            quantization,
            "Write a GGUF file of 4 bits: `adapterhub export` has --quant q4_k_m.",
        )
    return "q8_0" if quantization else "f16"


def _no_setting(name: str, value: object, hint: str) -> ConfigError:
    return ConfigError(f"The llama.cpp engine has no {name}={value!r}.", hint=hint)


def chosen_base(config: HubConfig, registry: AdapterRegistry) -> tuple[str, str | None]:
    """The base of the settings, or the one that most of the registry's cards name; and its revision.

    Raises:
        ConfigError: Neither names one.
    """
    name, revision = _named_base(config, registry)
    if name is None:
        raise ConfigError(
            "No base was given, and the registry names none.",
            hint="Give base='adapterhub-demo' (the small one that ships with the package), a folder, a GGUF file or "
            "a hub id.",
        )
    return name, revision


def _named_base(config: HubConfig, registry: AdapterRegistry) -> tuple[str | None, str | None]:
    if config.base:
        return config.base, config.revision
    named = (card.base for card in registry.list())
    bases = Counter((base.name, base.revision) for base in named if base.name)
    (name, revision), _ = bases.most_common(1)[0] if bases else ((None, None), 0)
    return name, config.revision or revision
