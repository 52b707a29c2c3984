"""Prepares a request for the engine, and makes a `Generation` of the engine's completions.

adapter reference -> route (only for "auto") -> registry -> the card's prompt profile -> token ids -> `Request`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

from adapterhub.engine.interface import Completion, Engine, LoraRequest, Request
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.engine.tokenizer import Message, special_tokens
from adapterhub.errors import AdapterIncompatibleError, InvalidRequestError, RequestTooLongError
from adapterhub.lora.blending.resolving import Blend, ResolvedAdapter, resolve_adapter
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest
from adapterhub.registry import AdapterCard, AdapterRegistry, PromptProfile
from adapterhub.registry.references import check_reference
from adapterhub.requests.encoding import PromptEncoder, max_prompt_characters
from adapterhub.requests.generation import Generation, Usage
from adapterhub.requests.options import RequestOptions
from adapterhub.requests.own_templates import OwnTemplates
from adapterhub.requests.prompts import PromptStyle, check_length, check_text, choose_style, conversation
from adapterhub.requests.traffic_split import resolve_for_request
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.filters import RouteFilter
from adapterhub.routing.registry_sync import SyncedRouter
from adapterhub.routing.router import AdapterRouter

Prompt = str | Sequence[Message] | Sequence[int]
BASE_NAMES = frozenset({"base", "__base__"})
"""References to the bare base; the second is PEFT's."""


def names_adapter(adapter: str | None) -> TypeGuard[str]:
    """Whether a reference names an adapter, a blend or the router's choice, and not the bare base."""
    return adapter is not None and check_reference(adapter) not in BASE_NAMES


def is_token_ids(prompt: Prompt) -> TypeGuard[Sequence[int]]:
    """Whether a prompt is a list of token ids, which is not empty."""
    return isinstance(prompt, list | tuple) and set(map(type, prompt)) == {int}


@dataclass(frozen=True)
class PreparedRequest:
    """A request for the engine, with what its `Generation` will report.

    Attributes:
        request: For the engine.
        adapter: The adapter or blend that answers; None for the bare base.
        route: The router's decision, if the adapter was `"auto"`.
    """

    request: Request
    adapter: ResolvedAdapter | None
    route: RouteDecision | None

    def generation(self, completions: Sequence[Completion], seconds: float) -> Generation:
        """The answer.

        Args:
            completions: From the engine, `n` of them.
            seconds: Wall time in the engine.
        """
        first, adapter = completions[0], self.adapter
        completion_tokens = sum(len(completion.token_ids) for completion in completions)
        return Generation(
            text=first.text,
            adapter=adapter.name if adapter else None,
            version=adapter.version if adapter else None,
            route=self.route,
            usage=Usage(
                len(self.request.prompt), completion_tokens, seconds, completions[0].num_cached_tokens
            ),
            finish_reason=first.finish_reason,
            completions=tuple(completions),
            output_format=self.request.output_format,
            prompt_token_ids=self.request.prompt,
        )


class RequestPreparer:
    """Prepares requests for an engine and the adapters of a registry.

    Any thread may call any method.

    Args:
        registry: The adapters.
        engine: Its tokenizer and its base decide how prompts are rendered and which adapters fit.
        router: Arguments of `AdapterRouter.from_cards`, such as `policy` or `log`.
    """

    def __init__(
        self, registry: AdapterRegistry, engine: Engine, router: Mapping[str, Any] | None = None
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._encoder = PromptEncoder(engine.tokenizer)
        self._special = special_tokens(engine.tokenizer)
        self._max_characters = max_prompt_characters(engine.tokenizer, engine.context_length)
        self._own_templates = OwnTemplates(registry)
        self._router = SyncedRouter(registry, engine.fingerprint, router)

    def prepare(
        self,
        prompt: Prompt,
        adapter: str | None,
        options: RequestOptions,
        output_format: OutputFormat | None = None,
    ) -> PreparedRequest:
        """Prepares one request; errors as in `AdapterHub.generate`.

        Args:
            prompt: A text or a conversation.
            adapter: A reference, a blend, `"auto"`, or None for the bare base.
            options: The options of the call.
            output_format: Replaces the one in `options`.
        """
        if output_format is None and options.output_format:
            output_format = OutputFormat.of(**options.output_format)
        route, resolved, profile = self._choose(
            prompt, adapter, options.where, partial(self._resolve_for_request, user=options.user)
        )
        token_ids, style_stop = self._tokenize(prompt, profile, options)
        card = resolved.main_card if resolved else None
        defaults: tuple[Mapping[str, Any], ...] = (
            self._engine.default_sampling_params,
            {"stop": (*style_stop, *profile.stop)},
            profile.generation,
        )
        if output_format:
            defaults = tuple(map(self._without_stop_texts, defaults))
        request = Request(
            prompt=token_ids,
            adapter=self._lora_request_of(resolved) if resolved else None,
            sampling=SamplingParams.of(*defaults, options.sampling),
            output_format=output_format,
            priority=_priority(options, card),
        )
        return PreparedRequest(request, resolved, route)

    def encode(self, prompt: Prompt, adapter: str | None, options: RequestOptions) -> list[int]:
        """The token ids of a prompt; see `AdapterHub.encode_prompt`."""
        _, _, profile = self._choose(prompt, adapter, options.where, self._resolve_for_base)
        return self._tokenize(prompt, profile, options)[0]

    @property
    def has_router(self) -> bool:
        """Whether the router is fitted; else the first use of `router` fits it."""
        return self._router.is_fitted

    @property
    def router(self) -> AdapterRouter:
        """The router for the registry's present state."""
        return self._router.current()

    def route(self, prompt: Prompt, where: RouteFilter | None = None) -> RouteDecision:
        """Chooses an adapter; see `AdapterHub.route`."""
        text = self._decoded(prompt) if is_token_ids(prompt) else prompt
        return self.router.route(conversation(text), where=where or RouteFilter())

    def prompt_style(self, adapter: str | None) -> PromptStyle:
        """The prompt style of an adapter; see `AdapterHub.prompt_style`."""
        if not names_adapter(adapter):
            return self._style(PromptProfile())
        return self._style(self._profile(self.resolve(adapter).main_card))

    def resolve(self, reference: str) -> ResolvedAdapter:
        """The adapter, or the adapters of a blend, that a reference names, whatever base they are for."""
        return resolve_adapter(reference, self._registry.resolve)

    def choose_version(self, reference: str, user: str | None) -> str:
        """A reference to the version that answers a request, where a split alias lets one of several answer.

        Args:
            reference: To an adapter or a blend; `"auto"` and the bare base stay as they are.
            user: As the option of a request.
        """
        if reference == "auto" or not names_adapter(reference):
            return reference
        return resolve_adapter(reference, partial(resolve_for_request, self._registry, user=user)).ref

    def resolve_for_base(self, reference: str) -> tuple[ResolvedAdapter, PromptProfile, LoraRequest]:
        """An adapter or blend for this base: what the reference names, its prompt profile, what the engine loads.

        Raises:
            AdapterIncompatibleError: It was made for another base.
        """
        resolved = resolve_adapter(reference, self._resolve_for_base)
        return resolved, self._profile(resolved.main_card), self._lora_request_of(resolved)

    def lora_request(self, reference: str) -> LoraRequest:
        """What the engine loads for a reference."""
        return self._lora_request_of(self.resolve(reference))

    def count_tokens(
        self,
        messages: Sequence[Message],
        adapter: str | None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> int:
        """The number of prompt tokens of messages and tools; with `"auto"`, in the base's own prompt style.

        Where the chat template refuses them, as a part of a conversation may be, it is that of their texts alone.
        """
        if not messages:
            return 0
        named = names_adapter(adapter) and adapter != "auto"
        profile = self._profile(self.resolve(adapter).main_card) if adapter and named else PromptProfile()
        turns = conversation(messages, profile.system, may_be_empty=True)
        try:
            return len(self._encoder.encode(self._encoder.render(turns, self._style(profile), tools=tools)))
        except InvalidRequestError:
            texts = (str(message.get("content") or "") for message in turns)
            return sum(len(self._engine.tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    def fits_base(self, card: AdapterCard) -> bool:
        """Whether an adapter was made for this base, as far as both are known."""
        return self._base_mismatch(card) is None

    def _without_stop_texts(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings that nobody chose for this request, for structured output: it may well have a text that ends prose.

        Special tokens still end it.
        """
        stop = settings.get("stop") or ()
        texts = [stop] if isinstance(stop, str) else stop
        ids = [self._special[text] for text in texts if text in self._special]
        return {**settings, "stop": (), "stop_token_ids": (*(settings.get("stop_token_ids") or ()), *ids)}

    def _choose(
        self,
        prompt: Prompt,
        adapter: str | None,
        where: RouteFilter | None,
        resolve: Callable[[str], AdapterCard],
    ) -> tuple[RouteDecision | None, ResolvedAdapter | None, PromptProfile]:
        """The router's decision if the adapter is `"auto"`, the adapter, and its prompt profile."""
        self._check_lengths(prompt)
        route = self.route(prompt, where) if adapter == "auto" else None
        reference = route.adapter if route else adapter
        if not names_adapter(reference):
            return route, None, PromptProfile()
        resolved = resolve_adapter(reference, resolve)
        return route, resolved, self._profile(resolved.main_card)

    def _check_lengths(self, prompt: Prompt) -> None:
        """Refuses a text beyond the context before it is routed, rendered or encoded, which takes long."""
        if is_token_ids(prompt) and len(prompt) > self._engine.context_length:
            raise RequestTooLongError(
                f"A prompt of {len(prompt)} tokens does not fit the context of {self._engine.context_length} tokens.",
                hint="Shorten the prompt.",
            )
        messages: Sequence[Any] = [{"content": prompt}] if isinstance(prompt, str) else prompt
        for message in messages if isinstance(messages, Sequence) else ():
            content = message.get("content") if isinstance(message, Mapping) else None
            # A template may leave out an earlier answer's reasoning.
            if isinstance(content, str) and message.get("role") != "assistant":
                check_length(content, self._max_characters)

    def _decoded(self, token_ids: Sequence[int]) -> str:
        try:
            return self._engine.tokenizer.decode(token_ids)
        except (OverflowError, ValueError, IndexError, TypeError) as error:  # as tokenizers differ
            raise InvalidRequestError(
                "A token id of the prompt is not one of the base's.", hint="Take ids of its own tokenizer."
            ) from error

    def _tokenize(
        self, prompt: Prompt, profile: PromptProfile, options: RequestOptions
    ) -> tuple[list[int], tuple[str, ...]]:
        """The prompt's token ids, and the stop strings of its style."""
        if options.raw:
            if is_token_ids(prompt):
                return list(prompt), ()
            if not isinstance(prompt, str) or not prompt:
                raise InvalidRequestError("raw=True takes a text or token ids, not empty, and not messages.")
            return self._encoder.encode_raw(check_text(prompt)), ()
        if is_token_ids(prompt):
            raise InvalidRequestError(
                "Token ids stand for a whole prompt, without a chat template.", hint="Give raw=True."
            )
        style = self._style(profile)
        rendered = self._encoder.render(
            conversation(prompt, profile.system),
            style,
            tools=options.tools,
            add_generation_prompt=options.template.add_generation_prompt,
            continue_final_message=options.template.continue_final_message,
            max_characters=self._max_characters,
            variables=options.template.variables,
        )
        check_text(rendered.text)
        return self._encoder.encode(rendered), style.stop

    def _profile(self, card: AdapterCard) -> PromptProfile:
        """The card's profile; the adapter's own template where the base's has changed since it was registered."""
        loaded, trained_on = self._engine.fingerprint, card.base.fingerprint
        has_changed = loaded and trained_on and trained_on.has_other_template(loaded)
        if not has_changed or card.prompt.chat_template or card.prompt.format not in ("auto", "chat"):
            return card.prompt
        return card.prompt.model_copy(update={"chat_template": self._own_templates.of(card)})

    def _style(self, profile: PromptProfile) -> PromptStyle:
        return choose_style(self._engine.tokenizer.chat_template, profile.format, profile.chat_template)

    def _resolve_for_base(self, reference: str) -> AdapterCard:
        return self._checked(self._registry.resolve(reference))

    def _resolve_for_request(self, reference: str, user: str | None) -> AdapterCard:
        return self._checked(resolve_for_request(self._registry, reference, user))

    def _checked(self, card: AdapterCard) -> AdapterCard:
        """The card, if its adapter is for this base."""
        mismatch = self._base_mismatch(card)
        if mismatch:
            raise AdapterIncompatibleError(
                f"Adapter {card.ref!r} was made for another base than {self._engine.base_name!r}: {mismatch}.",
                hint="Load the base that its card names, or register it for this one with force.",
            )
        return card

    def _base_mismatch(self, card: AdapterCard) -> str | None:
        loaded, trained_on = self._engine.fingerprint, card.base.fingerprint
        return trained_on.mismatch(loaded) if loaded and trained_on else None

    def _lora_request_of(self, resolved: ResolvedAdapter) -> LoraRequest:
        parts = [(StoredLoraRequest.of(self._registry, card), weight) for card, weight in resolved.parts]
        return BlendedLoraRequest.of(resolved.ref, parts) if isinstance(resolved, Blend) else parts[0][0]


def _priority(options: RequestOptions, card: AdapterCard | None) -> int:
    if options.priority is not None:
        return options.priority
    return card.serving.priority if card else 0
