"""What the chat model and the LLM have in common: the hub, the adapter of each call, settings, traces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self, cast

from langchain_core.globals import get_llm_cache
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import (
    BaseLanguageModel,
    LangSmithParams,
    LanguageModelOutputVar,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers import langchain as _  # noqa: F401  else the first call imports it, on its event loop
from pydantic import ConfigDict, Field, model_validator

from adapterhub.hub import AdapterHub
from adapterhub.langchain.answers import PROVIDER
from adapterhub.langchain.batches import together
from adapterhub.langchain.choice import check, chosen, identity, without_choice

SETTINGS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop")


CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)
"""For the classes below it: of several parents the last one's configuration counts."""


class HubModel(BaseLanguageModel[LanguageModelOutputVar]):
    """A language model on a hub, to be put before LangChain's own class among the parents.

    It turns what names the adapter of a call into the keyword argument `model`: a config is known only to the methods
    that it overrides. The call wins over the config, and the config over the field.
    """

    hub: AdapterHub = Field(exclude=True, repr=False)
    """What answers."""
    model: str = "base"
    """The adapter of calls that name none."""
    temperature: float | None = None
    """As in `SamplingParams`; what is None is left to the adapter's card."""
    max_tokens: int | None = None
    """Most tokens of an answer."""
    top_p: float | None = None
    """As in `SamplingParams`."""
    top_k: int | None = None
    """As in `SamplingParams`."""
    seed: int | None = None
    """As in `SamplingParams`."""
    stop: list[str] | None = None
    """Texts that end an answer; an answer that must have a form refuses them."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        check(self.hub, self.model)
        return self

    # Choosing an adapter

    def with_adapter(self, adapter: str) -> Self:
        """The same model with another adapter; it shares the hub.

        Args:
            adapter: As the field `model`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        check(self.hub, adapter)
        return self._with(model=adapter)

    def bind(self, **kwargs: Any) -> Any:
        """As in LangChain; an adapter that is bound stays, whatever is bound or made of the model afterwards."""
        adapter = chosen(kwargs, {})
        bound = self.with_adapter(adapter) if adapter else self
        return super(HubModel, bound).bind(**without_choice(kwargs))

    def _with(self, **fields: Any) -> Self:
        copy = self.model_copy(update=fields)
        copy.__dict__.pop("_serialized", None)  # langchain-core keeps there what traces say about the model
        return copy

    # LangChain's entry points: the config is known only here

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> LanguageModelOutputVar:
        """As in LangChain."""
        return super().invoke(input, config, **_called(kwargs, config))  # type: ignore[return-value, safe-super]

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> LanguageModelOutputVar:
        """As in LangChain; cancelling the task ends the answer."""
        return await super().ainvoke(input, config, **_called(kwargs, config))  # type: ignore[return-value]

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As in LangChain; closing the stream ends the answer."""
        return super().stream(input, config, **_called(kwargs, config))

    def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As in LangChain; closing the stream ends the answer."""
        return super().astream(input, config, **_called(kwargs, config))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As in LangChain."""
        return super().stream_events(input, config, **_called(kwargs, config))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As in LangChain."""
        return super().astream_events(input, config, **_called(kwargs, config))

    def batch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Iterator[Any]:
        """As `batch`, each answer with its place as soon as it is there."""
        return super().batch_as_completed(inputs, together(config, len(inputs)), **kwargs)

    # What a call asks

    def _arguments(self, stop: Sequence[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments over the model's own; None means not given."""
        own = {name: getattr(self, name) for name in SETTINGS}
        given = {"stop": stop or None, **without_choice(kwargs)}
        return own | {name: value for name, value in given.items() if value is not None}

    def _adapter(self, kwargs: dict[str, Any]) -> str:
        return chosen(kwargs, {}) or self.model

    # What tells about the model

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", *SETTINGS)} | self._identity(self.model)

    def _identity(self, adapter: str) -> dict[str, Any]:
        """What a cache has to know of an adapter, if there is one: reading cards takes time, on an event loop too."""
        cached = self.cache is not False and (self.cache or get_llm_cache())
        return identity(self.hub, adapter) if cached else {}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        # langchain-core knows which kind of model this is, the rest is told here: it takes numbers for the base's own.
        kind = super()._get_ls_params()["ls_model_type"]
        told = {
            "ls_temperature": kwargs.get("temperature", self.temperature),
            "ls_max_tokens": kwargs.get("max_tokens", self.max_tokens),
            "ls_stop": stop or self.stop or None,
        }
        known = {name: value for name, value in told.items() if value is not None}
        params = {
            "ls_provider": PROVIDER,
            "ls_model_name": self._adapter(kwargs),
            "ls_model_type": kind,
            **known,
        }
        return cast(LangSmithParams, params)

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the base's own tokenizer."""
        return self.hub.engine.tokenizer.encode(text, add_special_tokens=False)


def _called(kwargs: dict[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
    """The arguments with the adapter that the call or its config names, if they do, as `model`."""
    adapter = chosen(kwargs, config)
    return without_choice(kwargs) | ({"model": adapter} if adapter else {})
