"""The answers of `/v1/completions`: which tokens, in which chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

_MAX_STOP_STRINGS = 4


class BadRequestError(ValueError):
    """What vLLM answers with 400."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class Completion:
    """The answers to one body, `n` of them, token by token and side by side."""

    def __init__(
        self,
        body: dict[str, Any],
        tokenizer: Any,
        answer: Callable[[str, str], str],
        base: str,
        max_model_len: int,
        end_token_id: int | None,
    ) -> None:
        self._body, self._tokenizer = body, tokenizer
        self.prompt = self._prompt_token_ids()
        if len(self.prompt) > max_model_len:
            raise BadRequestError(
                f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at "
                f"least {len(self.prompt)} input tokens, which exceeds this limit even without any output tokens.",
                "input_tokens",
            )
        max_tokens = min(body.get("max_tokens", 16), max_model_len - len(self.prompt))
        stop = body.get("stop") or []
        if not isinstance(stop, str) and len(stop) > _MAX_STOP_STRINGS:
            raise BadRequestError("List should have at most 4 items after validation", "stop")
        prompt = tokenizer.decode(self.prompt)
        token_ids = tokenizer.encode(answer(body.get("model") or base, prompt), add_special_tokens=False)
        if end_token_id is not None:
            token_ids = [*token_ids, end_token_id]
        stops = [*(body.get("stop_token_ids") or ()), *(() if end_token_id is None else (end_token_id,))]
        ends = [place for place, token in enumerate(token_ids) if token in stops]
        length = min(max_tokens, ends[0] + 1 if ends else len(token_ids))
        self.token_ids = token_ids[:length]
        self._reason = "length" if length == max_tokens and ends[:1] != [length - 1] else "stop"
        self._end_token_id = end_token_id

    def _prompt_token_ids(self) -> list[int]:
        prompt = self._body.get("prompt")
        if not prompt:
            raise BadRequestError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        if isinstance(prompt, str):
            return list(self._tokenizer.encode(prompt))
        if any(not isinstance(token, int) or token < 0 for token in prompt):
            raise BadRequestError("Input should be greater than or equal to 0", "prompt")
        return list(prompt)

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The frames of a stream, one for each token of each answer."""
        for place in range(len(self.token_ids)):
            for index in range(self._body.get("n", 1)):
                yield self._chunk(place, index)

    def _chunk(self, place: int, index: int) -> dict[str, Any]:
        token = self.token_ids[place]
        choice: dict[str, Any] = {"index": index, "text": self._text(token)}
        if self._body.get("logprobs") is not None:
            choice["logprobs"] = self._logprobs(token)
            if self._body.get("echo") and place == 0:
                of_prompt = [self._logprobs(one) for one in self.prompt]
                of_prompt[0] |= {"token_logprobs": [None], "top_logprobs": [None]}
                both = [*of_prompt, choice["logprobs"]]
                choice["logprobs"] = {name: [one[name][0] for one in both] for name in both[0]}
        choice["finish_reason"] = self._reason if place == len(self.token_ids) - 1 else None
        if self._body.get("return_token_ids"):
            choice["token_ids"] = [token]
            if place == 0:
                choice["prompt_token_ids"] = self.prompt
        return self._frame([choice])

    def _text(self, token: int) -> str:
        return "" if token == self._end_token_id else str(self._tokenizer.decode([token]))

    def _logprobs(self, token: int) -> dict[str, Any]:
        # vLLM lists the sampled token, and the most probable ones besides.
        top = {self._name(token + place): -0.5 - place for place in range(self._body["logprobs"] or 1)}
        return {"tokens": [self._name(token)], "token_logprobs": [-0.5], "top_logprobs": [top]}

    def _name(self, token: int) -> str:
        as_id = self._body.get("return_tokens_as_token_ids")
        return f"token_id:{token}" if as_id else self._text(token)

    def usage_chunk(self) -> dict[str, Any] | None:
        """The last frame, if it was asked for."""
        asked = (self._body.get("stream_options") or {}).get("include_usage")
        return self._frame([]) | {"usage": self._usage()} if asked else None

    def whole(self) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        text = "".join(map(self._text, self.token_ids))
        choices = []
        for index in range(self._body.get("n", 1)):
            choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": self._reason}
            if self._body.get("return_token_ids"):
                choice |= {"token_ids": self.token_ids, "prompt_token_ids": self.prompt}
            choices.append(choice)
        return self._frame(choices) | {"usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        prompt, answer = len(self.prompt), len(self.token_ids) * self._body.get("n", 1)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": "cmpl-fake",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._body.get("model"),
            "choices": choices,
        }
