"""The card: the metadata of one version of an adapter.

A card is immutable; `AdapterRegistry.update` replaces it. `card.json` holds only the fields that differ from their
defaults, so that it is short and a change is one line of a diff.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from adapterhub._files import read_bounded
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.config import MAX_PRIORITY
from adapterhub.errors import AdapterInvalidError, InvalidRequestError, describe_validation
from adapterhub.peft_format.config import LoraSettings
from adapterhub.registry.routing_rules import check_rules

CARD_FILE = "card.json"
MAX_CARD_BYTES = 2**20
MAX_STOPS = 64
"""The engine takes no more in a request."""
PromptFormat: TypeAlias = Literal["auto", "chat", "instruction", "plain"]


class _CardModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Source(_CardModel):
    """The source of an imported adapter."""

    uri: str
    """`hf://organisation/name`, or the text given at registration."""
    revision: str | None = None
    """The commit of the hub repository."""


class BaseInfo(_CardModel):
    """The base that an adapter was trained on."""

    name: str | None = None
    """`adapterhub-demo`, a path or a hub id."""
    revision: str | None = None
    """The base's revision on the hub."""
    fingerprint: BaseFingerprint | None = None
    """Identifies the base; None if the adapter was not checked against one."""
    quantization: str | None = None
    """How the base was stored in training: `nf4`, `fp4`, `int8`; None if unknown or unquantised."""

    def revision_of(self, base: str | Path) -> str | None:
        """The revision, if `base` is this base's name; that of another base is not known."""
        return self.revision if str(base) == self.name else None


class PeftInfo(LoraSettings):
    """The LoRA settings and the stored weights."""

    model_config = ConfigDict(extra="forbid")

    dtype: str
    """The dtype of the weights, in safetensors' notation."""
    size_bytes: int
    """The size of the weights' file."""


class Evaluation(_CardModel):
    """One measured result, in the shape of a Hugging Face model card's `model-index`."""

    task_type: str
    """For example `text-generation`."""
    dataset_name: str
    """The dataset it was measured on."""
    metric_type: str
    """For example `exact_match`."""
    metric_value: Annotated[float, Field(allow_inf_nan=False)] | str
    """The value."""
    metric_name: str | None = None
    """The metric's display name."""
    dataset_type: str | None = None
    """The dataset's id."""
    dataset_split: str | None = None
    """For example `test`."""
    verified: bool | None = None
    """Whether the hub has verified the result."""


class PromptProfile(_CardModel):
    """How prompts for this adapter are rendered, and its sampling defaults."""

    system: str | None = None
    """The system prompt of conversations without one."""
    format: PromptFormat = "auto"
    """`auto`, `chat`, `instruction` or `plain`."""
    chat_template: str | None = None
    """A Jinja chat template that replaces the tokenizer's."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=MAX_STOPS)] = ()
    """Stop strings."""
    generation: dict[str, JsonValue] = {}
    """Default sampling parameters."""


class Routing(_CardModel):
    """The router's training data for this adapter."""

    description: str = ""
    """Which requests belong here, in a sentence; the card's description if empty."""
    examples: tuple[str, ...] = ()
    """Requests that belong here."""
    keywords: tuple[str, ...] = ()
    """Words typical of its requests; training data, as the tags are."""
    phrases: tuple[str, ...] = ()
    """Words or phrases that choose this adapter by rule, before the classifier."""
    patterns: tuple[str, ...] = ()
    """Regular expressions that choose this adapter by rule."""
    negatives: tuple[str, ...] = ()
    """Similar requests that do not belong here."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Minimum confidence; below it the base answers. None: the router's threshold."""


class Serving(_CardModel):
    """How the engine treats this adapter."""

    pinned: bool = False
    """Load it when a hub starts, and keep its LoRA slot."""
    preload: bool = False
    """Load it when a hub starts."""
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """The priority of requests that give none; higher ones start first."""


class Parent(_CardModel):
    """An adapter that another one was derived from."""

    name: str
    """Its name."""
    version: int = Field(gt=0)
    """Its version."""
    digest: str | None = None
    """Its digest, which identifies it after it was removed or renamed."""
    weight: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Its weight in a blend."""


class Lineage(_CardModel):
    """How an adapter was made."""

    method: str | None = None
    """`finetune`, `blend`, `import`, ..."""
    parents: tuple[Parent, ...] = ()
    """The adapters that it was derived from."""
    settings: dict[str, JsonValue] = {}
    """The method's settings, for example the schedule of a training run."""


class AdapterCard(_CardModel):
    """One version of an adapter."""

    name: str
    """The adapter's name."""
    version: int = Field(gt=0)
    """The version's number, counted from 1 and never reused."""
    aliases: tuple[str, ...] = ()
    """The aliases that point to this version; stored in `refs.json`, not in `card.json`."""
    digest: str
    """sha256 of the weights and of the settings that determine the delta weights; the key of every cache."""
    status: Literal["ready", "disabled"] = "ready"
    """`disabled` versions stay registered and are not served."""
    description: str = ""
    """What the adapter does, in a sentence or two."""
    tags: tuple[str, ...] = ()
    """Tags, as on a model card."""
    source: Source | None = None
    """Where it was imported from."""
    base: BaseInfo = BaseInfo()
    """The base that it was trained on."""
    peft: PeftInfo
    """The LoRA settings and the stored weights."""
    task: str | None = None
    """The kind of task, for example `text-generation`."""
    language: tuple[str, ...] = ()
    """Language codes."""
    license: str | None = None
    """The licence's identifier."""
    datasets: tuple[str, ...] = ()
    """The datasets that it was trained on."""
    evaluation: tuple[Evaluation, ...] = ()
    """Measured results."""
    prompt: PromptProfile = PromptProfile()
    """How prompts are rendered, and sampling defaults."""
    routing: Routing = Routing()
    """The router's training data."""
    serving: Serving = Serving()
    """How the engine treats it."""
    lineage: Lineage = Lineage()
    """How it was made."""
    warnings: tuple[str, ...] = ()
    """Warnings of the checks at registration."""
    created_at: datetime
    """When this version was registered (UTC)."""
    updated_at: datetime
    """When this card was last changed (UTC)."""

    @property
    def ref(self) -> str:
        """The reference to exactly this version: `name@version`."""
        return f"{self.name}@{self.version}"

    def to_json(self) -> bytes:
        """The content of `card.json`.

        Raises:
            InvalidRequestError: It is larger than `MAX_CARD_BYTES`, or could not be read again.
        """
        try:
            fields = self.model_dump(mode="json", exclude={"aliases"}, exclude_defaults=True)
            content = (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
            self.model_validate_json(content)
        except (ValueError, RecursionError) as error:
            # Lone surrogates, integers of thousands of digits, values nested too deep for a parser.
            raise InvalidRequestError(
                f"The card of {self.ref} has values that JSON in UTF-8 cannot hold ({type(error).__name__}).",
                hint="Give valid Unicode text, plain numbers, and values that are not nested deeply.",
            ) from error
        if len(content) > MAX_CARD_BYTES:
            raise InvalidRequestError(
                f"The card of {self.ref} would be larger than {MAX_CARD_BYTES:,} bytes.",
                hint="Give fewer or shorter examples.",
            )
        return content

    @classmethod
    def from_json(cls, text: bytes) -> AdapterCard:
        """Parses the content of a `card.json`.

        Raises:
            AdapterInvalidError: The content is not a valid card.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise AdapterInvalidError(
                f"{CARD_FILE} is not a card: {describe_validation(error)}.",
                hint="Repair the file, or remove that version's folder and register the adapter again.",
            ) from error

    @classmethod
    def of_folder(cls, folder: Path) -> AdapterCard | None:
        """The card in an adapter's folder; None if it has none.

        Raises:
            AdapterInvalidError: The file cannot be read, or is not a card.
        """
        path = folder / CARD_FILE
        return cls.from_json(read_bounded(path, MAX_CARD_BYTES)) if path.exists() else None

    def changed(self, changes: Mapping[str, Any]) -> AdapterCard:
        """A copy with some of `CardFields` set.

        Args:
            changes: Field -> new value. A mapping updates single settings of a group such as `routing`;
                other values replace the field.

        Raises:
            InvalidRequestError: There is no such field, it cannot be set, or the value is not valid.
        """
        unknown = sorted(changes.keys() - CardFields.__annotations__.keys())
        if unknown:
            raise InvalidRequestError(
                f"A card's {unknown[0]!r} cannot be set.",
                hint=f"What can be set: {', '.join(CardFields.__annotations__)}.",
            )
        fields = self.model_dump()
        for name, value in changes.items():
            is_update = isinstance(value, Mapping) and isinstance(fields[name], dict)
            fields[name] = {**fields[name], **value} if is_update else value
        try:
            card = AdapterCard.model_validate({**fields, "updated_at": now()})
        except ValidationError as error:
            raise InvalidRequestError(
                f"The card's new values are not valid: {describe_validation(error)}."
            ) from error
        if card.routing != self.routing:  # rules stored by other means do not block other changes
            check_rules(card.routing.phrases, card.routing.patterns)
        return card


class CardFields(TypedDict, total=False):
    """The fields of a card that a caller may set; the others follow from the files. A group may be a mapping."""

    status: Literal["ready", "disabled"]
    description: str
    tags: tuple[str, ...] | list[str]
    source: Source | Mapping[str, Any] | None
    task: str | None
    language: tuple[str, ...] | list[str]
    license: str | None
    datasets: tuple[str, ...] | list[str]
    evaluation: tuple[Evaluation, ...] | list[Evaluation] | list[Mapping[str, Any]]
    prompt: PromptProfile | Mapping[str, Any]
    routing: Routing | Mapping[str, Any]
    serving: Serving | Mapping[str, Any]
    lineage: Lineage | Mapping[str, Any]


def now() -> datetime:
    """The current time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
