"""From what a caller asks to what the engine is asked, and from its answer to what the caller gets.

adapter -> route (only for "auto") -> registry -> the card's prompt profile -> token ids -> `Request`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

from adapterhub.engine.interface import Completion, Engine, LoraRequest, Request
from adapterhub.engine.output_format import FORMS, OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.engine.tokenizer import Message
from adapterhub.errors import AdapterIncompatibleError, InvalidRequestError
from adapterhub.lora.blending.references import Blend
from adapterhub.registry import AdapterCard, AdapterRegistry, PromptProfile
from adapterhub.requests.generation import Generation, Usage
from adapterhub.requests.prompts import PromptStyle, check_text, choose_style, conversation, render
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.filters import EVERYTHING, RouteFilter
from adapterhub.routing.registry_sync import SyncedRouter
from adapterhub.routing.router import AdapterRouter

Prompt = str | Sequence[Message]
BASE_NAMES = frozenset({"base", "__base__"})
"""Words for the bare base where an adapter's name may stand; the second is PEFT's."""


def names_adapter(adapter: str | None) -> TypeGuard[str]:
    """Whether something else than the bare base is meant."""
    return adapter is not None and adapter not in BASE_NAMES


@dataclass(frozen=True)
class Options:
    """The keyword arguments of a request.

    Attributes:
        sampling: Fields of `SamplingParams` that the caller gave.
        form: What says which form the answer must have: arguments of `OutputFormat.of`.
        priority: Where requests have to wait, higher ones start first.
    """

    sampling: Mapping[str, Any]
    form: Mapping[str, Any]
    priority: int = 0

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Sorts keyword arguments by what they are about."""
        rest = dict(arguments)
        priority = rest.pop("priority", 0)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidRequestError(f"A priority is a whole number, not {priority!r}.")
        form = {name: rest.pop(name) for name in FORMS if name in rest}
        return cls(rest, form, priority)


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready for the engine, and what its answer will tell about itself."""

    request: Request
    blend: Blend | None
    route: RouteDecision | None

    def generation(self, completions: Sequence[Completion], seconds: float) -> Generation:
        """The answer, given what the engine made in so many seconds."""
        first, blend = completions[0], self.blend
        generated = sum(len(completion.token_ids) for completion in completions)
        return Generation(
            text=first.text,
            adapter=blend.name if blend else None,
            version=blend.version if blend else None,
            route=self.route,
            usage=Usage(len(self.request.prompt), generated, seconds),
            finish_reason=first.finish_reason,
            completions=tuple(completions),
            output_format=self.request.output_format,
        )


class RequestPreparer:
    """Makes requests for an engine from a registry's adapters.

    Args:
        registry: The adapters.
        engine: Whose tokenizer and base they are for.
        router: What `AdapterRouter.from_cards` takes beside cards, such as `policy` or `log`.
    """

    def __init__(
        self, registry: AdapterRegistry, engine: Engine, router: Mapping[str, Any] | None = None
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._router = SyncedRouter(registry, engine.fingerprint, router)

    def make(
        self,
        prompt: Prompt,
        adapter: str | None,
        options: Options,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        output_format: OutputFormat | None = None,
    ) -> PreparedRequest:
        """Prepares one request; arguments and errors as in `AdapterHub.generate`.

        Args:
            prompt: A text or a conversation.
            adapter: A reference, a blend, `"auto"`, or None for the bare base.
            options: Sampling and priority, and the form unless `output_format` is given.
            raw: Take the text as it stands.
            tools: JSON-Schema descriptions of functions.
            output_format: The form of the answer.
        """
        output_format = output_format or OutputFormat.of(**options.form)
        if output_format and options.sampling.get("stop"):
            raise InvalidRequestError(
                "A stop string would cut an answer that has to be whole.",
                hint="Leave stop out; the form ends it.",
            )
        route = self.route(prompt) if adapter == "auto" else None
        chosen = route.adapter if route else adapter
        blend = Blend.find(chosen, self._servable) if names_adapter(chosen) else None
        profile = blend.main.prompt if blend else PromptProfile()
        tokens, stop = self._tokens(prompt, profile, raw, tools)
        sampling = SamplingParams.of({"stop": (*stop, *profile.stop)}, profile.generation, options.sampling)
        source = self._source_of(blend) if blend else None
        return PreparedRequest(
            Request(tokens, source, sampling, output_format, options.priority), blend, route
        )

    @property
    def has_router(self) -> bool:
        """Whether the router is there already; else it is fitted when it is asked for."""
        return self._router.is_fitted

    @property
    def router(self) -> AdapterRouter:
        """The router for the registry as it is now."""
        return self._router.current()

    def route(self, prompt: Prompt, where: RouteFilter = EVERYTHING) -> RouteDecision:
        """Says which adapter should answer; see `AdapterHub.route`."""
        return self.router.route(conversation(prompt), where=where)

    def style(self, adapter: str | None) -> PromptStyle:
        """The form in which an adapter's prompts are written."""
        return self._style(self.found(adapter).main.prompt if names_adapter(adapter) else PromptProfile())

    def found(self, ref: str) -> Blend:
        """The adapter, or the adapters of a blend, that a reference names."""
        return Blend.find(ref, self._registry.resolve)

    def source(self, ref: str) -> LoraRequest:
        """What the engine loads for a reference."""
        return self._source_of(self.found(ref))

    def _tokens(
        self, prompt: Prompt, profile: PromptProfile, raw: bool, tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[int], tuple[str, ...]]:
        """What the base reads, and the strings that end its answer."""
        tokenizer = self._engine.tokenizer
        if raw:
            if not isinstance(prompt, str) or not prompt:
                raise InvalidRequestError("raw=True takes a text that is not empty, not messages.")
            return tokenizer.encode(check_text(prompt), add_special_tokens=True), ()
        style = self._style(profile)
        text = render(conversation(prompt, profile.system), style, tokenizer, tools=tools)
        # A chat template writes the base's special tokens itself.
        return tokenizer.encode(check_text(text), add_special_tokens=style.format != "chat"), style.stop

    def _style(self, profile: PromptProfile) -> PromptStyle:
        return choose_style(self._engine.tokenizer.chat_template, profile.format, profile.chat_template)

    def _servable(self, ref: str) -> AdapterCard:
        card = self._registry.resolve(ref)
        difference = self._difference(card)
        if difference:
            raise AdapterIncompatibleError(
                f"Adapter {card.ref!r} was made for another base than {self._engine.base_name!r}: {difference}.",
                hint="Load the base that its card names, or register it for this one with force.",
            )
        return card

    def _difference(self, card: AdapterCard) -> str | None:
        """How the base that an adapter was made for differs from this one, if both are known."""
        mine, trained_on = self._engine.fingerprint, card.base.fingerprint
        return trained_on.mismatch(mine) if mine and trained_on else None

    def _source_of(self, blend: Blend) -> LoraRequest:
        parts = [
            (LoraRequest(card.ref, card.digest, self._registry.folder(card)), weight)
            for card, weight in blend.parts
        ]
        return parts[0][0] if blend.is_plain else LoraRequest.blend(blend.ref, parts)
