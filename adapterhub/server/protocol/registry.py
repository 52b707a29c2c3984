"""Bodies and answers of requests to the registry and to the router."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from adapterhub.registry import AdapterCard, Alias, Evaluation, Shadow
from adapterhub.registry.refs import MAX_VERSIONS

Place: TypeAlias = Literal["slot", "host", "disk"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class AdapterSummary(BaseModel):
    """One version of an adapter."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """The reference to exactly this version."""
    object: Literal["adapterhub.adapter"] = "adapterhub.adapter"
    """The kind of this object."""
    name: str
    """The adapter's name."""
    version: int
    """The version's number."""
    aliases: tuple[str, ...]
    """The aliases that point to this version."""
    status: Literal["ready", "disabled"]
    """Only a `ready` version is served."""
    description: str
    """What the adapter does."""
    tags: tuple[str, ...]
    """Tags."""
    task: str | None
    """The kind of task."""
    language: tuple[str, ...]
    """Language codes."""
    license: str | None
    """The licence's identifier."""
    base: str | None
    """The base that it was trained on."""
    base_digest: str | None
    """The fingerprint of that base, if it is known."""
    method: str | None
    """How it was made: `finetune`, `blend`, `import`, ..."""
    parents: tuple[str, ...]
    """The versions that it was made from, in a blend with their weights: `json@1:0.7`."""
    rank: int
    """The highest rank of its modules."""
    size_bytes: int
    """The size of the weights' file."""
    digest: str
    """The identity of its weights and config."""
    evaluation: tuple[Evaluation, ...]
    """Measured results."""
    created: int
    """When it was registered, seconds since 1970."""
    place: Place
    """`slot`: in a LoRA slot; `host`: in host memory; `disk`: in the registry alone."""
    pinned: bool
    """Whether it stays in its slot."""
    running: int
    """Its running sequences."""
    waiting: int
    """Its waiting sequences."""
    tokens: int
    """Tokens that it has generated since the start."""
    card: AdapterCard | None = None
    """The whole card, for admins."""


class AdapterList(BaseModel):
    """Several versions of adapters."""

    object: Literal["list"] = "list"
    data: list[AdapterSummary]


class AddAdapterRequest(_Body):
    """Registers a folder as the next version of a name."""

    name: str = Field(max_length=200)
    """The adapter's name."""
    path: str = Field(min_length=1, max_length=4096)
    """The folder of PEFT's files: below one of the server's adapter folders, or absolute and in one of them."""
    force: bool = False
    """Accept another base than the files record; the card gets a warning."""
    card: dict[str, Any] = {}
    """Fields of the card to set, such as `description`, `tags`, `routing`, `prompt`."""


class AliasRequest(_Body):
    """Points an alias at a version, or lets several share its requests; sets its shadow."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"weights": {"3": 90, "4": 10}}]})

    version: int | None = Field(None, ge=1, le=999_999_999)
    """The version; this or `weights`."""
    weights: dict[int, int] | None = Field(None, min_length=1, max_length=MAX_VERSIONS)
    """Version -> whole weight: the versions share the requests in this ratio."""

    @model_validator(mode="after")
    def _has_one(self) -> AliasRequest:
        if (self.version is None) == (self.weights is None):
            raise ValueError("give either version or weights")
        return self


class ShadowRequest(_Body):
    """Sends copies of an alias' requests to another version."""

    version: int = Field(ge=1, le=999_999_999)
    """The version that gets them."""
    percent: float = Field(5.0, gt=0, le=100)
    """Share of the requests that are copied, in percent."""


class AliasState(BaseModel):
    """What an alias means."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """The reference: the adapter's name and the alias."""
    object: Literal["adapterhub.alias"] = "adapterhub.alias"
    """The kind of this object."""
    version: int
    """The version with the largest weight."""
    shares: dict[int, float]
    """Version -> its share of the requests, 0 to 1."""
    shadow: Shadow | None
    """What gets copies of its requests."""

    @classmethod
    def of(cls, ref: str, alias: Alias) -> Self:
        """What an alias means.

        Args:
            ref: The adapter's name and the alias.
            alias: As the registry has it.
        """
        return cls(id=ref, version=alias.version, shares=alias.shares, shadow=alias.shadow)


class AliasList(BaseModel):
    """The aliases of an adapter."""

    object: Literal["list"] = "list"
    data: list[AliasState]


class UpdateAdapterRequest(RootModel[dict[str, Any]]):
    """Fields of a version's card, with their new values."""


class PinRequest(_Body):
    """Keeps an adapter in its LoRA slot, or no longer."""

    pinned: bool = True
    """Whether to keep it."""


class RouteScore(BaseModel):
    """One route's score; only the order has a meaning."""

    adapter: str
    score: float


class RouteEvidence(BaseModel):
    """An n-gram, and what it adds to the scores of the best and the second route."""

    ngram: str
    best: float
    second: float


class RouteExplanation(BaseModel):
    """The router's decision with its reasons; see `RouteDecision` and `Explanation` for the fields."""

    object: Literal["adapterhub.route"] = "adapterhub.route"
    adapter: str | None
    confidence: float
    threshold: float
    reason: str
    fallback: bool
    matched: str | None = None
    scores: list[RouteScore] = []
    evidence: list[RouteEvidence] = []
    segment: str = ""
    unknown: float = 0.0
    router_version: str = ""


class RouterFinding(BaseModel):
    """A problem of one or two routes; see `Finding` for the fields."""

    kind: str
    adapters: tuple[str, ...]
    message: str
    examples: tuple[str, ...]


class RouterState(BaseModel):
    """What the router chooses from."""

    version: str
    adapters: list[str]
    findings: list[RouterFinding]
    message: str | None = None


class RouteRequest(_Body):
    """Asks the router about a prompt, without answering it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Who ordered most?"}]})

    prompt: str | None = None
    """A text; this or `messages`."""
    messages: list[dict[str, Any]] | None = Field(None, max_length=1000)
    """A conversation, of which the last message of the user counts."""

    @model_validator(mode="after")
    def _has_one(self) -> RouteRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self
