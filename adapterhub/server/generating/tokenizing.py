"""The token ids of a prompt, as a request for an answer would have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub.errors import InvalidRequestError
from adapterhub.server.generating.conversations import chat_request
from adapterhub.server.generating.model_names import AUTO, adapter_of, route_filter_of
from adapterhub.server.generating.tools import functions_of, tool_choice_of
from adapterhub.server.protocol.tokenize import TokenizeRequest
from adapterhub.server.state import ServerState


def prompt_tokens(body: TokenizeRequest, state: ServerState) -> list[int]:
    """The token ids; errors as of a request for an answer.

    Args:
        body: The text or conversation.
        state: The server's parts.
    """
    if body.prompt is not None:
        adapter_of(body.model, state)  # it has to exist for the caller
        if not body.add_special_tokens:
            return state.hub.engine.tokenizer.encode(body.prompt, add_special_tokens=False)
        return state.hub.encode_prompt(body.prompt, None, raw=True)
    messages = [message.converted(f"messages.{at}") for at, message in enumerate(body.messages or ())]
    functions = functions_of(tool.function for tool in body.tools or ())
    choice = tool_choice_of(functions, None, None)
    adapter = _chosen(body.model, messages, state) or "base"
    request = chat_request(state, adapter, messages, {}, functions=functions, choice=choice, output_format={})
    return state.hub.encode_prompt(
        request.messages,
        request.adapter,
        tools=request.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def text_of(tokens: Sequence[int], state: ServerState) -> str:
    """The text of token ids, with special tokens.

    Raises:
        InvalidRequestError: The base has no such token.
    """
    highest = max(state.hub.engine.tokenizer.get_vocab().values(), default=None)
    if highest is not None and max(tokens, default=0) > highest:  # which decoding would leave out
        raise InvalidRequestError("The base's tokenizer has no such token.", hint=f"Ids end at {highest}.")
    try:
        text = state.hub.engine.tokenizer.decode(tokens, skip_special_tokens=False)
    except (OverflowError, ValueError, IndexError, TypeError) as error:
        raise InvalidRequestError("The base's tokenizer has no such token.") from error
    return text.encode(errors="replace").decode()


def _chosen(model: str, messages: Sequence[Mapping[str, Any]], state: ServerState) -> str | None:
    adapter = adapter_of(model, state)
    if adapter != AUTO:
        return adapter
    return state.hub.route(messages, where=route_filter_of(state)).adapter
