"""The llama.cpp engine on the demo's held-out requests: beside our own engine, and beside llama-cpp-python's own loop.

    python -m benchmarks.llama_cpp_engine --n 12
    python -m benchmarks.llama_cpp_engine --base adapterhub-demo-real --n 10

Answers are greedy. They are compared with those of our engine on the same base, unquantised; where one differs, by how
much its first other token is less probable. Times are of one row, prompt and answer: each request is answered by the
engine and by `Llama.generate` in turn, with the same adapter, threads and number of tokens. Needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapterhub import AdapterHub, Completion
from adapterhub.base.loading import load_tokenizer
from adapterhub.base.locating import gguf_file, locate_base
from adapterhub.demo import demo_registry_folder, demo_requests
from adapterhub.engine import Request
from adapterhub.export import export_gguf_adapter
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.model import write_model
from adapterhub.gguf.tokenizer import gguf_tokenizer
from adapterhub.llama_cpp.bindings import library
from adapterhub.requests.options import RequestOptions

MAX_TOKENS = 160


@dataclass(frozen=True)
class Asked:
    """A request of a task, for the engines and for llama-cpp-python."""

    adapter: str | None
    request: Request


def asked(hub: AdapterHub, real: bool, n: int) -> Iterator[Asked]:
    """The requests that ship, and `n` held-out ones of each task."""
    requests = [(one.adapter, list(one.messages), one.tools) for one in demo_requests(real=real)]
    if real:
        from examples.demo_real.tasks import TASKS as TASKS_REAL

        for name in ("extract", "intents"):
            task = TASKS_REAL[name]
            system = {"role": "system", "content": task.system}
            requests += [(name, [system, *one["messages"][:-1]], None) for one in task.heldout(n)]
    else:
        from examples.demo.data import TASKS

        for name, module in TASKS.items():
            found = module.generate("heldout", n, 3)
            requests += [(name, one["messages"][:-1], one.get("tools")) for one in found]
    for adapter, messages, tools in requests:
        options = RequestOptions.of(
            {"temperature": 0, "max_tokens": MAX_TOKENS, "logprobs": 2}, None, tools=tools
        )
        yield Asked(adapter, hub._preparer.prepare(messages, adapter, options).request)


def without_logprobs(request: Request) -> Request:
    """As the loop of llama-cpp-python computes it."""
    return replace(request, sampling=request.sampling.model_copy(update={"logprobs": None}))


def gap(ours: Completion, theirs: Completion) -> float | None:
    """By how much the first other token is less probable than the one that our engine chose; None if none is."""
    for one, other in zip(ours.logprobs or (), theirs.logprobs or (), strict=False):
        if one.token_id != other.token_id:
            return one.logprob - min(one.top.values())
    return None


class Loop:
    """llama-cpp-python's own loop: `Llama.generate`, greedy, one adapter at a time."""

    def __init__(self, file: Path, context: int, adapters: Path) -> None:
        self._settings: dict[str, Any] = {"model_path": str(file), "n_ctx": context, "verbose": False}
        threads = torch.get_num_threads()
        self._settings |= {"n_threads": threads, "n_threads_batch": threads}
        self._adapters = adapters
        self._loaded: dict[str | None, Any] = {}

    def generate(self, one: Asked, tokens: int) -> list[int]:
        """As many tokens as the engine gave."""
        llama = self._of(one.adapter)
        llama.reset()
        found: list[int] = []
        for token in llama.generate(list(one.request.prompt), temp=0.0, top_k=1, repeat_penalty=1.0):
            found.append(token)
            if len(found) == tokens:
                break
        return found

    def _of(self, adapter: str | None) -> Any:
        if adapter not in self._loaded:
            lora = {"lora_path": str(self._adapters / adapter / "adapter-f32.gguf")} if adapter else {}
            self._loaded[adapter] = library().Llama(**self._settings, **lora)
        return self._loaded[adapter]


def timed(call: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measure(hub: AdapterHub, loop: Loop, requests: Sequence[Asked], rounds: int) -> dict[str, float]:
    """The ratio of the sums of times, for each round; the first warms up."""
    ratios, of_token = [], []
    for _ in range(rounds + 1):
        ours = theirs = tokens = 0.0
        for one in requests:
            plain = without_logprobs(one.request)
            seconds, [[completion]] = timed(lambda plain=plain: hub.engine.generate([plain]))
            count = len(completion.token_ids)
            other, _ = timed(lambda one=one, count=count: loop.generate(one, count))
            ours, theirs, tokens = ours + seconds, theirs + other, tokens + count
        ratios.append(ours / theirs)
        of_token.append(1e3 * ours / tokens)
    return {
        "ratio to llama-cpp-python": round(statistics.median(ratios[1:]), 3),
        "highest ratio of a round": round(max(ratios[1:]), 3),
        "ms for each token": round(statistics.median(of_token[1:]), 2),
    }


def run(base: str, n: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """All figures."""
    real, registry = base == "adapterhub-demo-real", demo_registry_folder(real=base == "adapterhub-demo-real")
    settings: dict[str, Any] = {"kv_cache_mib": 128}
    folder = locate_base(base)
    with (
        AdapterHub.from_pretrained(
            base, registry, engine="llama.cpp", **settings, **({} if real else {"quantization": None})
        ) as hub,
        AdapterHub.from_pretrained(
            base, registry, quantization=None, compute_dtype="float32", **settings
        ) as own,
    ):
        requests = list(asked(hub, real, n))
        answers = [
            (own.engine.generate([one.request])[0][0], hub.engine.generate([one.request])[0][0])
            for one in requests
        ]
        different = [one for pair in answers if (one := gap(*pair)) is not None]
        for name in {one.adapter for one in requests} - {None}:
            export_gguf_adapter(hub.registry, str(name), scratch / str(name), base_folder=folder)
        file = gguf_file(base) or _whole_file(folder, scratch / "base.gguf")
        times = measure(hub, Loop(file, hub.engine.context_length, scratch), requests, rounds)
    return {
        "requests": len(requests),
        "same answers as our engine": len(requests) - len(different),
        "gaps of the others": [round(one, 4) for one in different],
        **times,
    }


def _whole_file(folder: Path, file: Path) -> Path:
    """The base with a tokenizer, which `Llama` asks for; the nearest way to split text will do."""
    size = Architecture.of_folder(folder).config.vocab_size
    write_model(folder, file, gguf_tokenizer(load_tokenizer(folder), size, pre="gpt-2"), file_type="f16")
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures as JSON."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--base", choices=["adapterhub-demo", "adapterhub-demo-real"], default="adapterhub-demo"
    )
    options.add_argument("--n", type=int, default=12, help="held-out requests of each task")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(run(given.base, given.n, given.rounds, Path(scratch)), indent=1))


if __name__ == "__main__":
    main()
