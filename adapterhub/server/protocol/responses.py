"""Bodies of `/v1/responses`: OpenAI's Responses API, without what a server would have to store."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.fields import ListOf, at_most
from adapterhub.server.protocol.sampling import GenerationBody
from adapterhub.server.protocol.tools import CHOICE_KINDS, Chosen, Function, Mode

_STORED = frozenset({"background", "conversation", "previous_response_id", "prompt", "store"})


class TextPart(BaseModel):
    """A part of a message, or of a call's result, that is text."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(BaseModel):
    """An earlier answer's refusal."""

    type: Literal["refusal"]
    refusal: str


def _text_or_list(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


_Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[ListOf[_Part], Tag("list")], Discriminator(_text_or_list)
]
"""Text, or parts that are text: images, audio and files are not supported."""


class MessageItem(BaseModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(BaseModel):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(BaseModel):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(BaseModel):
    """Reasoning of another model, which is left out."""

    type: Literal["reasoning"]


def _kind_of_item(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind_of_item,
        custom_error_type="input_item",
        custom_error_message="Expected a message, function_call, function_call_output or reasoning item; "
        "nothing is stored that an item could refer to",
    ),
]


class ResponseFunctionTool(Function):
    """A function that the answer may call."""

    type: Literal["function"]
    """`"function"`; no tool runs in this server."""

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("type") != "function":
            raise ValueError("only tools of the type function are supported: none runs in this server")
        return given


class ResponseNamedFunction(BaseModel):
    """The one function that the answer has to call."""

    type: Literal["function"]
    name: str

    def chosen(self) -> Chosen:
        """That function, which must be called."""
        return Chosen("required", (self.name,), single=True)


class ResponseAllowedTools(BaseModel):
    """Restricts the tools of one request, while the prompt stays the same."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: ListOf[ResponseNamedFunction] = Field(min_length=1)

    def chosen(self) -> Chosen:
        """Those functions."""
        return Chosen(self.mode, tuple(tool.name for tool in self.tools))


ResponseToolChoice = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[ResponseNamedFunction, Tag("function")]
    | Annotated[ResponseAllowedTools, Tag("allowed_tools")],
    CHOICE_KINDS,
]


class TextFormat(BaseModel):
    """Any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object"]


class JsonSchemaTextFormat(BaseModel):
    """JSON of a schema."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """No effect: answers always match."""


class TextConfig(BaseModel):
    """What the answer's text has to match."""

    format: Annotated[TextFormat | JsonSchemaTextFormat, Field(discriminator="type")] | None = TextFormat(
        type="text"
    )
    verbosity: Literal["low", "medium", "high"] | None = None
    """No effect."""


class ResponseRequest(GenerationBody):
    """The body of `POST /v1/responses`. Nothing is stored: each request brings its whole conversation."""

    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("text")]
        | Annotated[ListOf[InputItem], Field(min_length=1), Tag("list")],
        Discriminator(_text_or_list),
    ]
    """A question, or the items of a conversation."""
    instructions: str | None = None
    """The system prompt; the adapter's own if not given."""
    max_output_tokens: int | None = None
    """Maximum number of tokens of the answer; 256 if not sent, or what the context leaves."""
    tools: ListOf[ResponseFunctionTool] | None = None
    """The functions that the answer may call."""
    tool_choice: ResponseToolChoice | None = None
    """Which of them it may or must call; `auto` if there are tools."""
    parallel_tool_calls: bool | None = None
    """Whether it may call several; true if not sent."""
    text: TextConfig | None = None
    """What the answer's text has to match."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Return the log-probabilities of this many most probable tokens at each position of a text."""
    include: ListOf[str] | None = None
    """`message.output_text.logprobs` returns the log-probabilities of the text's tokens; others have no effect."""
    metadata: Annotated[dict[str, str], at_most(16)] | None = Field(None, max_length=16)
    """Comes back with the answer."""
    store: bool | None = None
    """Nothing is stored, so true is refused."""
    background: bool | None = None
    """True is refused."""
    truncation: Literal["auto", "disabled"] | None = None
    """A conversation beyond the context is refused, so `auto` is."""
    previous_response_id: str | None = None
    """Refused: nothing is stored."""
    conversation: Any = None
    """Refused: nothing is stored."""
    prompt: Any = None
    """Refused: nothing is stored."""

    def options(self) -> dict[str, Any]:
        """The options of a call of the hub that were sent.

        Raises:
            FieldError: A field asks for what only a server with a store has, or for several answers.
        """
        self._check()
        options = self.sampling_options()
        if self.max_output_tokens is not None:
            options["max_tokens"] = self.max_output_tokens
        if self.has_logprobs:
            options["logprobs"] = self.top_logprobs or 0
        return options

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer has the log-probabilities of its tokens."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def _check(self) -> None:
        for name in sorted(_STORED):
            if getattr(self, name):
                raise FieldError(
                    f"{name} is not supported: nothing is stored.",
                    name,
                    "unsupported_parameter",
                    hint="Send the whole conversation as input.",
                )
        if self.truncation == "auto":
            raise FieldError(
                "truncation='auto' is not supported.",
                "truncation",
                "unsupported_parameter",
                hint="Shorten the input instead.",
            )
        if self.n not in (None, 1):
            raise FieldError("A response has one answer, so n must be 1.", "n")
