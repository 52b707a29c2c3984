"""The base class of the chat model and the LLM: hub, adapter of each call, sampling parameters, tracing."""

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
from langchain_core.tracers import langchain as _  # noqa: F401  otherwise the first call imports it on its event loop
from pydantic import ConfigDict, Field, model_validator

from adapterhub.hub import AdapterHub
from adapterhub.langchain.adapter_selection import (
    cache_identity,
    check_adapter,
    selected_adapter,
    without_adapter,
)
from adapterhub.langchain.batching import with_concurrency
from adapterhub.langchain.results import PROVIDER
from adapterhub.requests.prompts import check_text

SAMPLING_FIELDS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop")

MODEL_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)
"""For the subclasses: with several parents, pydantic takes the configuration of the last one."""


class BaseHubModel(BaseLanguageModel[LanguageModelOutputVar]):
    """A language model on a hub; a mixin that precedes LangChain's own base class.

    It converts the adapter of a call's config into the keyword argument `model`, because only the methods overridden
    here receive the config. The call wins over the config, and the config over the field.
    """

    hub: AdapterHub = Field(exclude=True, repr=False)
    """The hub that serves the calls."""
    model: str = "base"
    """The adapter of calls that name none."""
    temperature: float | None = None
    """As in `SamplingParams`; if None, the adapter's card decides."""
    max_tokens: int | None = None
    """Maximum tokens of an answer."""
    top_p: float | None = None
    """As in `SamplingParams`."""
    top_k: int | None = None
    """As in `SamplingParams`."""
    seed: int | None = None
    """As in `SamplingParams`."""
    stop: list[str] | None = None
    """Strings that end an answer; not allowed with an output format."""

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        check_adapter(self.hub, self.model)
        return self

    # Selecting an adapter

    def with_adapter(self, adapter: str) -> Self:
        """The same model with another adapter; it shares the hub.

        Args:
            adapter: As the field `model`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        check_adapter(self.hub, adapter)
        return self._with(model=adapter)

    def bind(self, **kwargs: Any) -> Any:
        """As in LangChain; a bound adapter stays bound in everything derived from the result."""
        adapter = selected_adapter(kwargs, {})
        bound = self.with_adapter(adapter) if adapter else self
        return super(BaseHubModel, bound).bind(**without_adapter(kwargs))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy of everything but the hub, which holds a model and threads."""
        memo = {} if memo is None else memo
        memo[id(self.hub)] = self.hub
        return super().__deepcopy__(memo)

    def _with(self, **fields: Any) -> Self:
        copy = self.model_copy(update=fields)
        copy.__dict__.pop(
            "_serialized", None
        )  # langchain-core caches the model's description for traces there
        return copy

    # LangChain's entry points; only they receive the config

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> LanguageModelOutputVar:
        """As in LangChain."""
        return super().invoke(input, config, **_with_selected_adapter(kwargs, config))  # type: ignore[return-value, safe-super]

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> LanguageModelOutputVar:
        """As in LangChain; cancelling the task aborts the request."""
        return await super().ainvoke(input, config, **_with_selected_adapter(kwargs, config))  # type: ignore[return-value]

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As in LangChain; closing the stream aborts the request."""
        return super().stream(input, config, **_with_selected_adapter(kwargs, config))

    def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As in LangChain; closing the stream aborts the request."""
        return super().astream(input, config, **_with_selected_adapter(kwargs, config))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As in LangChain."""
        return super().stream_events(input, config, **_with_selected_adapter(kwargs, config))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As in LangChain."""
        return super().astream_events(input, config, **_with_selected_adapter(kwargs, config))

    def batch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Iterator[Any]:
        """As `batch`, but yields each answer with its index as soon as it is complete."""
        return super().batch_as_completed(inputs, with_concurrency(config, len(inputs)), **kwargs)

    # A call's arguments

    def _arguments(self, stop: Sequence[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments merged over the model's fields; None means not given."""
        fields = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        given = {"stop": stop or None, **without_adapter(kwargs)}
        return fields | {name: value for name, value in given.items() if value is not None}

    def _adapter(self, kwargs: dict[str, Any]) -> str:
        return selected_adapter(kwargs, {}) or self.model

    # Description of the model

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", *SAMPLING_FIELDS)} | self._identity(
            self.model
        )

    def _identity(self, adapter: str) -> dict[str, Any]:
        """The identity of an adapter for the cache; empty without one, because reading all cards takes time."""
        cached = self.cache is not False and (self.cache or get_llm_cache())
        return cache_identity(self.hub, adapter) if cached else {}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        # Only the model type is langchain-core's: it would take the parameters from the wrong fields.
        kind = super()._get_ls_params()["ls_model_type"]
        described = {
            "ls_temperature": kwargs.get("temperature", self.temperature),
            "ls_max_tokens": kwargs.get("max_tokens", self.max_tokens),
            "ls_stop": stop or self.stop or None,
        }
        known = {name: value for name, value in described.items() if value is not None}
        params = {
            "ls_provider": PROVIDER,
            "ls_model_name": self._adapter(kwargs),
            "ls_model_type": kind,
            **known,
        }
        return cast(LangSmithParams, params)

    def get_token_ids(self, text: str) -> list[int]:
        """The token ids of a text, by the base's tokenizer."""
        return self.hub.engine.tokenizer.encode(check_text(text), add_special_tokens=False)


def _with_selected_adapter(kwargs: dict[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
    """The arguments, with the adapter that the call or its config names as `model`."""
    adapter = selected_adapter(kwargs, config)
    return without_adapter(kwargs) | ({"model": adapter} if adapter else {})
