"""A chat: each line is a message that is answered, or a command that begins with `/`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.cli import output
from adapterhub.cli.chat_history import ChatHistory, Message
from adapterhub.cli.run import footer
from adapterhub.engine.interface import DEFAULT_MAX_TOKENS
from adapterhub.errors import InvalidRequestError, RequestTooLongError

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub
    from adapterhub.requests.streaming import GenerationStream

# An answer must not rewrite the terminal: all but tab and line break.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = """\
/adapter NAME   answer with this adapter, a blend, auto or base from now on; without NAME show them
/system TEXT    set the system prompt; without TEXT show it; `/system none` removes it
/reset          forget the conversation
/save FILE      append the conversation to a JSON Lines file, as `adapterhub finetune` reads it
/help           show this
/exit           leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / takes a space before it."""


class ChatSession:
    """Answers messages with a hub, in the light of what was said before, and prints the answers as they come.

    The hub's active adapter answers.

    Args:
        hub: The hub.
        history: The conversation so far.
        generation: Fields of `SamplingParams` for every answer.
        history_tokens: The most tokens of a prompt; None leaves room for an answer in the base's context.
    """

    def __init__(
        self,
        hub: AdapterHub,
        history: ChatHistory,
        generation: Mapping[str, Any] | None = None,
        history_tokens: int | None = None,
    ) -> None:
        self.hub = hub
        self.history = history
        self.has_ended = False
        self._generation = dict(generation or {})
        context = hub.engine.context_length
        self._history_tokens = history_tokens or context - min(DEFAULT_MAX_TOKENS, context // 4)
        self._commands: dict[str, Callable[[str], None]] = {
            "adapter": self._switch,
            "system": self._set_system,
            "reset": self._reset,
            "save": self._save,
            "help": lambda _: output.note(_HELP),
            "exit": lambda _: self._end(),
        }

    def take(self, line: str) -> None:
        """Answers a line, or does what it commands; one without text is ignored.

        Raises:
            AdapterHubError: It cannot be answered or done.
            KeyboardInterrupt: The answer was stopped; what came of it is part of the conversation.
        """
        if line.startswith("/"):
            name, _, argument = line[1:].partition(" ")
            self._command(name)(argument.strip())
        elif line.strip():
            self._answer(line.strip())

    def _answer(self, text: str) -> None:
        adapter, route = self.hub.active_adapter, None
        received: list[str] = []
        try:
            if adapter == "auto":
                route = self.hub.route(text)
                adapter = route.adapter
            with self._stream(text, adapter) as stream:
                for delta in stream:
                    received.append(delta)
                    output.emit(_CONTROL_CHARACTERS.sub("", delta), newline=False)
        except KeyboardInterrupt:
            output.emit("")
            output.note(f"[{adapter or 'base'}, stopped]")
            raise
        finally:
            if received:  # also of a stopped answer: it was read, and the next message may refer to it
                self.history.exchanges.append((text, "".join(received)))
        output.emit("")
        if stream.result:
            output.note(footer(replace(stream.result, route=route)))

    def _stream(self, text: str, adapter: str | None) -> GenerationStream:
        """The answer to a message with as many earlier ones as fit."""
        *longer, alone = self.history.prompts(text)
        for messages in longer:
            if self._tokens(messages, adapter) <= self._history_tokens:
                with suppress(RequestTooLongError):  # a card may want room for a longer answer
                    return self.hub.stream(messages, adapter, **self._generation)
        return self.hub.stream(alone, adapter, **self._generation)

    def _tokens(self, messages: list[Message], adapter: str | None) -> int:
        return self.hub._count_prompt_tokens(messages, adapter, None)

    def _command(self, name: str) -> Callable[[str], None]:
        if name in self._commands:
            return self._commands[name]
        near = difflib.get_close_matches(name, self._commands, n=1)
        raise InvalidRequestError(
            f"There is no command /{name}.", hint=f"Did you mean /{near[0]}?" if near else "/help shows them."
        )

    def _switch(self, name: str) -> None:
        if name:
            self.hub.set_adapter(name)
            output.note(f"{name} answers from now on.")
            return
        names = ", ".join(["base", "auto", *(card.name for card in self.hub.registry.list())])
        output.note(f"{self.hub.active_adapter or 'base'} answers. There are {names}.")

    def _set_system(self, text: str) -> None:
        if text:
            self.history.system = None if text == "none" else text
        output.note(f"System prompt: {self.history.system or 'that of the adapter, if it has one'}")

    def _reset(self, _: str) -> None:
        self.history.exchanges.clear()
        output.note("The conversation is forgotten.")

    def _save(self, name: str) -> None:
        if not name:
            raise InvalidRequestError("There is no file to save to.", hint="/save conversation.jsonl")
        self.history.save(Path(name))
        output.note(f"Saved to {name}.")

    def _end(self) -> None:
        self.has_ended = True
