"""The hub: one base, a registry of adapters, a router and an engine behind one façade.

A request's path: text -> `route` (only for `adapter="auto"`) -> `registry.resolve` -> the card's prompt profile
renders token ids -> the engine -> `Generation`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

from adapterhub.config import HubConfig, registry_folder
from adapterhub.engine.interface import Completion, Engine, TokenOutput
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.stats import EngineStats
from adapterhub.errors import ConfigError, InvalidRequestError
from adapterhub.registry import AdapterCard, AdapterRegistry
from adapterhub.requests.generation import AsyncGenerationStream, Generation, GenerationStream
from adapterhub.requests.preparing import Options, PreparedRequest, Prompt, RequestPreparer, names_adapter
from adapterhub.requests.prompts import PromptStyle
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.filters import EVERYTHING, RouteFilter
from adapterhub.routing.router import AdapterRouter

if TYPE_CHECKING:
    from adapterhub.export.merge import MergeReport
    from adapterhub.lora.blending.methods import Method
    from adapterhub.registry import CardFields


class _Active:
    """The default of every `adapter=`: whatever `set_adapter` or `using` chose."""

    def __repr__(self) -> str:
        return "ACTIVE"


ACTIVE: Final = _Active()
Choice = str | None | _Active
Result = TypeVar("Result")


class AdapterHub:
    """Serves any registered adapter on one base.

    Make one with `AdapterHub.from_pretrained`; this constructor takes the parts, for tests and other engines.

    Args:
        registry: The adapters.
        engine: What generates; `EchoEngine()` needs no model.
        router: What `AdapterRouter.from_cards` takes beside cards, such as `policy`, `fallback`, `log` or `encoder`.
    """

    def __init__(
        self, registry: AdapterRegistry, engine: Engine, *, router: Mapping[str, Any] | None = None
    ) -> None:
        self.registry = registry
        self._engine = engine
        self._active: ContextVar[str | None] = ContextVar("active_adapter", default=None)
        self._known: set[str] = set()  # references that `set_adapter` has found before
        self._maker = RequestPreparer(registry, engine, router)
        self._aside, self._fitting = _one_thread(), _one_thread()

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

        Args:
            base: `"adapterhub-demo"`, a folder or a hub id; if not given, the base that the registry's cards name.
            registry: The folder of adapters; if not given, see `HubConfig.registry`.
            router: As for the constructor.
            **settings: Further fields of `HubConfig`, such as `quantization="nf4"` or `device="auto"`.

        Raises:
            ConfigError: A setting is not valid, or the base cannot be loaded or is not known.
        """
        config = HubConfig.load(base=str(base) if base else None, registry=registry, **settings)
        adapters = AdapterRegistry(registry_folder(config.registry))
        name, limits = config.base or base_of_registry(adapters), config.limits
        # torch and transformers take seconds to import, so everything above has been checked first.
        from adapterhub.base.loading import load_base
        from adapterhub.engine.batching import BatchingEngine

        loaded = load_base(
            name,
            quantization=config.quantization,
            compute_dtype=config.compute_dtype,
            device=config.device,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        return cls(adapters, BatchingEngine(loaded, limits), router=router)

    @property
    def engine(self) -> Engine:
        """What generates."""
        return self._engine

    # Choosing an adapter

    @property
    def active_adapter(self) -> str | None:
        """The adapter of requests that name none, in this thread or task; None is the bare base."""
        return self._active.get()

    def set_adapter(self, adapter: str | None) -> None:
        """Chooses the adapter of requests that name none, in this thread or asyncio task.

        Moves no weights. Other threads and tasks keep theirs; tasks started from here inherit this one.

        Args:
            adapter: `"name"`, `"name@3"`, `"name@alias"`, a blend such as `"json:0.7+support:0.3"`, `"auto"`, or None
                for the bare base.

        Raises:
            AdapterNotFoundError: There is no such adapter; nothing is changed.
        """
        self._active.set(self._checked(adapter))

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[Self]:
        """Chooses an adapter for the block, and puts the former one back; see `set_adapter`."""
        token = self._active.set(self._checked(adapter))
        try:
            yield self
        finally:
            self._active.reset(token)

    @property
    def router(self) -> AdapterRouter:
        """The router, in step with the registry.

        Raises:
            RoutingError: No card of an adapter for this base has anything to route by.
        """
        return self._maker.router

    def route(self, prompt: Prompt, *, where: RouteFilter = EVERYTHING) -> RouteDecision:
        """Says which adapter should answer; those for another base are no candidates.

        Args:
            prompt: A text or messages; of messages, the last one by the user counts.
            where: Narrows the adapters that may be chosen.

        Raises:
            InvalidRequestError: The prompt is empty.
            RoutingError: No card of an adapter for this base has anything to route by.
        """
        return self._maker.route(prompt, where)

    # Answering

    def generate(
        self,
        prompt: Prompt,
        adapter: Choice = ACTIVE,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Generation:
        """Answers one prompt.

        Args:
            prompt: A text (one user message) or a conversation as a list of `{"role", "content"}` messages.
            adapter: `"name"`, `"name@3"`, `"name@alias"`, a blend such as `"json:0.7+support:0.3"` (the weighted sum),
                `"auto"` (the router chooses), None or `"base"` (the bare base); if not given, the active adapter.
            raw: Take the text as it stands, without chat template or system prompt.
            tools: JSON-Schema descriptions of functions, shown to the model by its chat template.
            **options: Fields of `SamplingParams`, which win over the card's own defaults; and, for an answer that must
                have a form, one of `schema` (a pydantic model or another type, or a JSON Schema), `regex`, `grammar`
                (Lark) or `choices` (a list of texts), see `OutputFormat.of`; and `priority`, a whole number: where
                requests have to wait, higher ones start first, 0 by default.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            AdapterIncompatibleError: It does not fit this base.
            RegistryError: It is disabled.
            RoutingError: The router has nothing to choose by.
            RequestTooLongError: Prompt and answer do not fit the context, or `max_tokens` is less than an answer of
                that form takes.
            InvalidRequestError: An empty prompt, an argument that is not valid, or a form that cannot be enforced.
        """
        prepared = self._prepare(prompt, adapter, raw, tools, options)
        started = time.perf_counter()
        (answers,) = self._engine.generate([prepared.request])
        return prepared.generation(answers, time.perf_counter() - started)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        adapters: Choice | Sequence[str | None] = ACTIVE,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Answers several prompts, each with its own adapter.

        Args:
            prompts: Texts or conversations.
            adapters: One choice for all, or one for each prompt; see `generate`.
            raw: As in `generate`.
            tools: As in `generate`.
            **options: As in `generate`, for all prompts; the four of a form may also be lists with one or None for
                each prompt, `choices` then a list of lists.

        Raises:
            InvalidRequestError: As many adapters as prompts were expected.
            AdapterHubError: As `generate`, for any of the prompts; there are no answers then.
        """
        prepared = self._prepare_batch(prompts, adapters, raw, tools, options)
        started = time.perf_counter()
        answers = self._engine.generate([one.request for one in prepared])
        return _generations(prepared, answers, time.perf_counter() - started)

    def stream(
        self,
        prompt: Prompt,
        adapter: Choice = ACTIVE,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> GenerationStream:
        """Answers one prompt piece by piece; arguments and errors as in `generate`.

        Returns:
            An iterator of text; its `result` is the `Generation` once it has ended.
        """
        _refuse_several(options)
        prepared = self._prepare(prompt, adapter, raw, tools, options)
        return GenerationStream(_streamed(prepared, self._engine.stream(prepared.request)))

    async def agenerate(
        self,
        prompt: Prompt,
        adapter: Choice = ACTIVE,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Generation:
        """As `generate`, without blocking the event loop; cancelling the task cancels the answer."""
        prepared = await self._prepared(self._prepare, prompt, adapter, raw, tools, options)
        started = time.perf_counter()
        (answers,) = await self._engine.agenerate([prepared.request])
        return prepared.generation(answers, time.perf_counter() - started)

    async def agenerate_batch(
        self,
        prompts: Sequence[Prompt],
        adapters: Choice | Sequence[str | None] = ACTIVE,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Generation]:
        """As `generate_batch`, without blocking the event loop; cancelling the task cancels the answers."""
        prepared = await self._prepared(self._prepare_batch, prompts, adapters, raw, tools, options)
        started = time.perf_counter()
        answers = await self._engine.agenerate([one.request for one in prepared])
        return _generations(prepared, answers, time.perf_counter() - started)

    def astream(
        self,
        prompt: Prompt,
        adapter: Choice = ACTIVE,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> AsyncGenerationStream:
        """As `stream`, without blocking the event loop; leaving the loop early cancels the answer.

        Returns:
            An asynchronous iterator of text; its `result` is the `Generation` once it has ended.
        """
        _refuse_several(options)
        prepare = partial(self._prepared, self._prepare, prompt, adapter, raw, tools, options)
        return AsyncGenerationStream(_astreamed(prepare, self._engine))

    async def aside(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Does what takes a moment beside the event loop, such as preparing a request; one thing at a time.

        Args:
            work: What to do.
            *arguments: Its arguments.
        """
        here = copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._aside, here.run, work, *arguments)

    # An adapter's life

    def prompt_style(self, adapter: str | None) -> PromptStyle:
        """The form in which an adapter's prompts are written, and who decided so."""
        return self._maker.style(adapter)

    def blend(
        self,
        name: str,
        weights: Mapping[str, float],
        *,
        method: Method = "cat",
        rank: int | None = None,
        density: float | None = None,
        seed: int | None = None,
        **fields: Unpack[CardFields],
    ) -> AdapterCard:
        """Blends registered adapters into a new one and registers it, with its lineage; no model is needed.

        For a blend in one request only, write `adapter="json:0.7+support:0.3"` there.

        Args:
            name: The new adapter's name; one that exists gets its next version.
            weights: Reference -> weight, from -10 to 10; at most 8.
            method: `"cat"` is the exact sum, its rank the sum of ranks; `"svd"` (or `"linear"`) is that sum's best
                approximation of a rank; `"ties"` and `"dare_ties"` merge sparsely. See `BlendSettings`.
            rank: The rank of the result, for all methods but `"cat"`; if not given, the highest of the parts.
            density: For `"ties"` and `"dare_ties"`: the share of entries to keep, above 0 and at most 1.
            seed: For `"dare_ties"`: what decides which are kept; 0 if not given.
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

    def merge(self, name: str, out: str | Path) -> MergeReport:
        """Writes a standalone model: the base's 16-bit weights with an adapter merged in.

        The live base is not touched. See `adapterhub.export.merge_adapter`.

        Args:
            name: The adapter.
            out: A folder that does not exist yet, or is empty.

        Raises:
            ExportError: The merge failed; nothing was written.
        """
        from adapterhub.base.locating import locate_base
        from adapterhub.export.merge import merge_adapter

        card = self.registry.resolve(name)
        base = locate_base(self._engine.base_name)
        return merge_adapter(base, self.registry.folder(card), Path(out))

    def agreement(
        self,
        name: str,
        merged: str | Path,
        prompts: Sequence[Prompt],
        *,
        tools: Sequence[Sequence[Mapping[str, Any]] | None] | None = None,
        max_tokens: int = 64,
    ) -> float:
        """Compares a merged model with the adapter that it was made from.

        Both answer greedily; the 4-bit base with its adapter, and the merged weights as they are stored.

        Args:
            name: The adapter.
            merged: The folder that `merge` wrote.
            prompts: What to ask both.
            tools: For each prompt what `generate` takes as `tools`; if not given, none.
            max_tokens: How much of each answer to compare.

        Returns:
            The share of prompts, 0 to 1, that both answer word for word alike.

        Raises:
            InvalidRequestError: There are no prompts, as many `tools` were expected, or the folder holds no model.
        """
        from adapterhub.base.loading import load_base
        from adapterhub.engine.batching import BatchingEngine

        if not prompts:
            raise InvalidRequestError("There is nothing to compare the models by.", hint="Give prompts.")
        offers = [None] * len(prompts) if tools is None else tools
        if len(offers) != len(prompts):
            raise InvalidRequestError(
                f"There are {len(prompts)} prompts and {len(offers)} offers of tools.", hint="Give one each."
            )
        given = {"max_tokens": max_tokens, "temperature": 0.0}
        requests = [
            self._prepare(prompt, name, False, offered, given).request
            for prompt, offered in zip(prompts, offers, strict=True)
        ]
        engine = BatchingEngine(load_base(merged, quantization=None))
        answers = engine.generate([replace(request, adapter=None) for request in requests])
        engine.close()
        wanted = self._engine.generate(requests)
        return sum(a[0].text == b[0].text for a, b in zip(answers, wanted, strict=True)) / len(prompts)

    # The engine

    def stats(self) -> EngineStats:
        """What the engine does and holds now: answers, slots, memory, tokens per second."""
        return self._engine.stats()

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keeps an adapter in the model even while no answer uses it, or no longer.

        Args:
            name: The adapter.
            pinned: False undoes it.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        self._engine.pin(self._maker.source(name), pinned)

    def unload(self, name: str) -> None:
        """Takes an adapter out of the model and out of memory once no running answer needs it.

        The registry keeps it, and the next request loads it again.

        Args:
            name: The adapter.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        self._engine.unload(self._maker.source(name))

    def close(self) -> None:
        """Ends running answers and frees the engine. The registry stays usable."""
        self._engine.close()
        # A later request takes the new ones, and is told by the engine that it is closed.
        formers = self._aside, self._fitting
        self._aside, self._fitting = _one_thread(), _one_thread()
        for former in formers:
            former.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests

    async def _prepared(
        self, prepare: Callable[..., Result], prompt: Any, adapters: Choice | Sequence[str | None], *rest: Any
    ) -> Result:
        """Prepares beside the event loop. Fitting the router takes seconds, for which only `"auto"` has to wait."""
        choices = [adapters] if adapters is None or isinstance(adapters, str | _Active) else adapters
        if not self._maker.has_router and "auto" in map(self._wanted, choices):
            await asyncio.get_running_loop().run_in_executor(self._fitting, getattr, self, "router")
        return await self.aside(prepare, prompt, adapters, *rest)

    def _prepare(
        self,
        prompt: Prompt,
        choice: Choice,
        raw: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> PreparedRequest:
        return self._maker.make(prompt, self._wanted(choice), Options.of(options), raw=raw, tools=tools)

    def _prepare_batch(
        self,
        prompts: Sequence[Prompt],
        adapters: Choice | Sequence[str | None],
        raw: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[PreparedRequest]:
        if isinstance(prompts, str):
            raise InvalidRequestError(
                "A batch takes a list of prompts, not one text.", hint="generate() takes one."
            )
        choices, asked = _one_each(prompts, adapters), Options.of(options)
        forms = OutputFormat.each(len(prompts), **asked.form)
        asked = replace(asked, form={})
        return [
            self._maker.make(prompt, self._wanted(choice), asked, raw=raw, tools=tools, output_format=form)
            for prompt, choice, form in zip(prompts, choices, forms, strict=True)
        ]

    def _wanted(self, choice: Choice) -> str | None:
        return self.active_adapter if isinstance(choice, _Active) else choice

    def _checked(self, adapter: str | None) -> str | None:
        # Reading a card takes longer than a switch may; whether it is still there is seen at the next request.
        if not names_adapter(adapter):
            return None
        # There is no end of blends, so those are not remembered.
        if adapter != "auto" and adapter not in self._known and self._maker.found(adapter).is_plain:
            self._known.add(adapter)
        return adapter


def _one_thread() -> ThreadPoolExecutor:
    # Python runs one at a time: each further one would keep an event loop waiting for its turn.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapterhub-aside")


def _one_each(prompts: Sequence[Prompt], adapters: Choice | Sequence[str | None]) -> Sequence[Choice]:
    if adapters is None or isinstance(adapters, str | _Active):
        return [adapters] * len(prompts)
    if len(adapters) != len(prompts):
        raise InvalidRequestError(
            f"There are {len(prompts)} prompts and {len(adapters)} adapters.", hint="Give one each."
        )
    return adapters


def _generations(
    prepared: Sequence[PreparedRequest], answers: Sequence[Sequence[Completion]], seconds: float
) -> list[Generation]:
    return [one.generation(answer, seconds) for one, answer in zip(prepared, answers, strict=True)]


def _refuse_several(sampling: Mapping[str, Any]) -> None:
    if sampling.get("n", 1) != 1:
        raise InvalidRequestError("A stream has one answer, so n must be 1.")


def _streamed(prepared: PreparedRequest, pieces: Iterator[TokenOutput]) -> Generator[str | Generation]:
    started, seen = time.perf_counter(), []
    for piece in pieces:
        seen.append(piece)
        if piece.text:
            yield piece.text
    yield prepared.generation([Completion.of(seen)], time.perf_counter() - started)


async def _astreamed(
    prepare: Callable[[], Awaitable[PreparedRequest]], engine: Engine
) -> AsyncGenerator[str | Generation]:
    prepared = await prepare()
    started, seen = time.perf_counter(), []
    async for piece in engine.astream(prepared.request):
        seen.append(piece)
        if piece.text:
            yield piece.text
    yield prepared.generation([Completion.of(seen)], time.perf_counter() - started)


def base_of_registry(registry: AdapterRegistry) -> str:
    """The base that the registry's cards name; if they name several, the one most of them name."""
    names = Counter(card.base.name for card in registry.list() if card.base.name)
    if not names:
        raise ConfigError(
            "No base was given, and the registry names none.",
            hint="Give base='adapterhub-demo' (the small one that ships with the package), a folder or a hub id.",
        )
    return names.most_common(1)[0][0]
