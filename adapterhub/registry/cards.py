"""The card: everything the registry knows about one version of an adapter, apart from its weights.

A card is immutable; `AdapterRegistry.update` writes a new one in its place. On disk it is `card.json` with
only what differs from the defaults, so that it reads well and a change shows as one line in a diff.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import AdapterInvalidError, InvalidRequestError, describe_validation
from adapterhub.peft_format.config import LoraSettings

CARD_FILE = "card.json"
MAX_CARD_BYTES = 2**20
PromptFormat: TypeAlias = Literal["auto", "chat", "instruction", "plain"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Source(_Part):
    """Where an adapter came from."""

    uri: str
    """`hf://organisation/name`, or whatever the person who registered it gave."""
    revision: str | None = None
    """The commit of a hub repository."""


class BaseInfo(_Part):
    """The base that an adapter was trained on."""

    name: str | None = None
    """`adapterhub-demo`, a folder or a hub id."""
    revision: str | None = None
    """The base's revision on the hub."""
    fingerprint: BaseFingerprint | None = None
    """What the base is; None if the adapter was not checked against one."""
    quantization: str | None = None
    """How the base was stored in training: `nf4`, `fp4`, `int8`; None if unknown or unquantised."""


class PeftInfo(LoraSettings):
    """The LoRA settings and the stored weights."""

    model_config = ConfigDict(extra="forbid")

    dtype: str
    """The weights' dtype, as safetensors spells it."""
    size_bytes: int
    """The size of the weights' file."""


class Evaluation(_Part):
    """One measured result, in the shape of a Hugging Face model card's `model-index`."""

    task_type: str
    """For example `text-generation`."""
    dataset_name: str
    """What it was measured on."""
    metric_type: str
    """For example `exact_match`."""
    metric_value: Annotated[float, Field(allow_inf_nan=False)] | str
    """The value."""
    metric_name: str | None = None
    """The metric in words."""
    dataset_type: str | None = None
    """The dataset's id."""
    dataset_split: str | None = None
    """For example `test`."""
    verified: bool | None = None
    """Whether the hub measured it itself."""


class PromptProfile(_Part):
    """How requests to this adapter are written and answered."""

    system: str | None = None
    """The system prompt of conversations that bring none."""
    format: PromptFormat = "auto"
    """`auto`, `chat`, `instruction` or `plain`."""
    chat_template: str | None = None
    """A Jinja chat template to use in place of the tokenizer's."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    generation: dict[str, JsonValue] = {}
    """Sampling parameters to use where the caller gives none."""


class Routing(_Part):
    """What the router learns this adapter from."""

    description: str = ""
    """Which requests belong here, in a sentence; the card's description if empty."""
    examples: tuple[str, ...] = ()
    """Requests that belong here."""
    keywords: tuple[str, ...] = ()
    """Words that speak for this adapter; learned from, as the tags are."""
    phrases: tuple[str, ...] = ()
    """Words or phrases that decide for this adapter before the classifier is asked."""
    patterns: tuple[str, ...] = ()
    """Regular expressions that do the same."""
    negatives: tuple[str, ...] = ()
    """Requests that look alike and do not belong here."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Confidence below which the base answers; the router's own if None."""


class Serving(_Part):
    """How the engine treats this adapter."""

    pinned: bool = False
    """Load it when a hub starts, and keep its LoRA slot."""
    preload: bool = False
    """Load it when a hub starts."""
    priority: int = 0
    """The priority of requests that give none; higher ones start first."""


class Parent(_Part):
    """An adapter that another one was made from."""

    name: str
    """Its name."""
    version: int = Field(gt=0)
    """Its version."""
    digest: str | None = None
    """Its digest, in case the name has moved on."""
    weight: float | None = None
    """Its share in a blend."""


class Lineage(_Part):
    """How an adapter came to be."""

    method: str | None = None
    """`finetune`, `blend`, `import`, ..."""
    parents: tuple[Parent, ...] = ()
    """The adapters it was made from."""
    settings: dict[str, JsonValue] = {}
    """The method's settings, for example the schedule of a training run."""


class AdapterCard(_Part):
    """One version of an adapter."""

    name: str
    """The adapter's name."""
    version: int = Field(gt=0)
    """The version's number, counted from 1 and never given again."""
    aliases: tuple[str, ...] = ()
    """The aliases that point here; kept beside the versions, not in `card.json`."""
    digest: str
    """sha256 of the weights and the settings that change the arithmetic: its identity in every cache."""
    status: Literal["ready", "disabled"] = "ready"
    """`disabled` versions are kept, and not served."""
    description: str = ""
    """What the adapter does, in a sentence or two."""
    tags: tuple[str, ...] = ()
    """Words to find it by."""
    source: Source | None = None
    """Where it came from."""
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
    """What it was trained on."""
    evaluation: tuple[Evaluation, ...] = ()
    """Measured results."""
    prompt: PromptProfile = PromptProfile()
    """How requests are written and answered."""
    routing: Routing = Routing()
    """What the router learns it from."""
    serving: Serving = Serving()
    """How the engine treats it."""
    lineage: Lineage = Lineage()
    """How it came to be."""
    warnings: tuple[str, ...] = ()
    """What was not in order when it was registered."""
    created_at: datetime
    """When this version was registered (UTC)."""
    updated_at: datetime
    """When this card was last changed (UTC)."""

    @property
    def ref(self) -> str:
        """The reference that always means this version: `name@version`."""
        return f"{self.name}@{self.version}"

    def to_json(self) -> bytes:
        """The content of `card.json`.

        Raises:
            InvalidRequestError: It would be larger than a card that can be read.
        """
        fields = self.model_dump(mode="json", exclude={"aliases"}, exclude_defaults=True)
        content = (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
        if len(content) > MAX_CARD_BYTES:
            raise InvalidRequestError(
                f"The card of {self.ref} would be larger than {MAX_CARD_BYTES:,} bytes.",
                hint="Keep fewer or shorter examples on it.",
            )
        return content

    @classmethod
    def from_json(cls, text: bytes) -> AdapterCard:
        """Reads the content of a `card.json`.

        Raises:
            AdapterInvalidError: It is no card.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise AdapterInvalidError(
                f"{CARD_FILE} is not a card: {describe_validation(error)}.",
                hint="Mend the file, or remove that version's folder and register the adapter again.",
            ) from error

    def changed(self, changes: Mapping[str, Any]) -> AdapterCard:
        """The same version with some of `CardFields` set anew.

        Args:
            changes: Field -> new value. A mapping changes single settings of a group such as `routing`;
                anything else takes the field's place.

        Raises:
            InvalidRequestError: There is no such field, it cannot be changed, or the value does not fit.
        """
        foreign = sorted(changes.keys() - CardFields.__annotations__.keys())
        if foreign:
            raise InvalidRequestError(
                f"A card's {foreign[0]!r} cannot be set.",
                hint=f"What can be set: {', '.join(CardFields.__annotations__)}.",
            )
        fields = self.model_dump()
        for name, value in changes.items():
            together = isinstance(value, Mapping) and isinstance(fields[name], dict)
            fields[name] = {**fields[name], **value} if together else value
        try:
            return AdapterCard.model_validate({**fields, "updated_at": now()})
        except ValidationError as error:
            raise InvalidRequestError(f"The card cannot be set so: {describe_validation(error)}.") from error


class CardFields(TypedDict, total=False):
    """What a caller may set on a card; the rest follows from the files. Groups may be given as mappings."""

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
    """This moment, in UTC and whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
