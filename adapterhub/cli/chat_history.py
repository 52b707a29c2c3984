"""The conversation of a chat, and how much of it a request takes along."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.errors import ConfigError

Message = dict[str, str]


@dataclass
class ChatHistory:
    """The exchanges of a chat. Requests take the latest of them along; all of them are saved.

    Attributes:
        limit: The most messages of earlier exchanges that a request takes; None takes all.
        system: The system prompt; None leaves it to the adapter's card.
        exchanges: Each message of the user with its answer.
    """

    limit: int | None = None
    system: str | None = None
    exchanges: list[tuple[str, str]] = field(default_factory=list)

    def prompts(self, text: str) -> Iterator[list[Message]]:
        """The messages of a request, longest first: each prompt lacks one more of the oldest exchanges.

        Exchanges are left out whole, since many chat templates want a message of the user first.

        Args:
            text: The new message of the user, which every prompt ends with.
        """
        kept = len(self.exchanges) if self.limit is None else min(self.limit // 2, len(self.exchanges))
        for count in range(kept, -1, -1):
            recent = self.exchanges[len(self.exchanges) - count :]
            yield [*self._messages(recent), {"role": "user", "content": text}]

    def save(self, path: Path) -> None:
        """Appends the whole conversation to a JSON Lines file, as a record that `adapterhub finetune` reads.

        Args:
            path: Ends in `.jsonl`.

        Raises:
            ConfigError: There is nothing to save, the name is another, or the file cannot be written.
        """
        import json

        if not self.exchanges:
            raise ConfigError("There is nothing to save yet.")
        if path.suffix != ".jsonl":
            raise ConfigError(
                "A conversation is saved as a line of JSON Lines.", hint="Give a name that ends in .jsonl."
            )
        record = json.dumps({"messages": self._messages(self.exchanges)}, ensure_ascii=False)
        try:
            _append_line(path.expanduser(), record.encode())
        except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is not known
            raise ConfigError(f"{str(path)!r} cannot be written: {error}.") from error

    def _messages(self, exchanges: list[tuple[str, str]]) -> list[Message]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in exchanges:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return messages


def _append_line(path: Path, line: bytes) -> None:
    """Appends a line, or nothing: what a full disk cut short is taken back."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            content = line + b"\n"
            if file.write(content) != len(content):
                raise OSError("no space left")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
