"""The cost of structured output for each token: the mask, and the search that keeps an answer within its budget.

    python -m benchmarks.structured
    python -m benchmarks.structured --vocabulary 128000

Answers are sampled at random from the demo base's vocabulary, so that only the constraint and the sampler are timed, in
processor time of this process; the sampler's includes the tokens that were rejected. The budget of `tight` answers is
4 tokens above the shortest answer, of `roomy` ones 200. The last line is one token of the demo base, in a batch of one;
with a generated vocabulary of another size there is no base.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from adapterhub import AdapterHub, AdapterRegistry, SamplingParams, load_base
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.output_format import OutputFormat

clock = time.process_time  # this process's own time: other programs on the machine add nothing to it
BUDGET_ABOVE_SHORTEST = {"tight": 4, "roomy": 200}


class Item(BaseModel):
    """A line of an order."""

    name: str
    count: int


class Order(BaseModel):
    """A nested schema."""

    id: int
    customer: str
    items: list[Item]
    status: Literal["new", "paid", "sent"]
    note: str | None = None


OUTPUT_FORMATS: dict[str, dict[str, Any]] = {
    "schema": {"schema": Order},
    "regex": {"regex": r"[A-Z][a-z]+ [A-Z][a-z]+, [0-9]{4}-[0-9]{2}-[0-9]{2}"},
    "grammar": {"grammar": 'start: NUM | "(" start "+" start ")"\nNUM: /[0-9]+/'},
    "choices": {"choices": ["hardware", "software", "billing", "something else"]},
}


class TimedSampler:
    """A sampler that adds up its processor time."""

    def __init__(self, seed: int) -> None:
        self._sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), 0, torch.device("cpu"))
        self.seconds = 0.0

    def draw(self, logits: Logits, allowed: torch.Tensor) -> tuple[int, Any]:
        """Samples a token and adds the time."""
        started = clock()
        drawn = self._sampler.draw(logits, allowed)
        self.seconds += clock() - started
        return drawn


def answer(
    compiler: GrammarCompiler, output_format: OutputFormat, budget: int, vocab_size: int, seed: int
) -> tuple[float, float]:
    """Microseconds a token in the constraint and in the sampler."""
    constraint, sampler, tokens = compiler.constraint(output_format, budget, ()), TimedSampler(seed), 0
    generator, seconds = torch.Generator().manual_seed(seed), 0.0
    while not constraint.finished:
        (logits,) = Logits.of(torch.randn(1, vocab_size, generator=generator))
        started = clock()
        constraint.choose(partial(sampler.draw, logits), vocab_size)
        seconds += clock() - started
        tokens += 1
    return 1e6 * (seconds - sampler.seconds) / tokens, 1e6 * sampler.seconds / tokens


def generated_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of `size` tokens: the bytes, random words and parts of words, and an end token."""
    chooser, alphabet = random.Random(0), sorted(ByteLevel.alphabet())
    vocabulary = {symbol: token_id for token_id, symbol in enumerate(alphabet)}
    words, merges = ["\u0120", *"etaoinshrdlucmfwypvbgkqjxz"], []
    while len(vocabulary) < size - 1:
        pair = chooser.choice(words), chooser.choice(words[1:27])
        if "".join(pair) not in vocabulary and len(pair[0]) < 12:
            vocabulary["".join(pair)] = len(vocabulary)
            words.append("".join(pair))
            merges.append(pair)
    tokenizer = Tokenizer(BPE(vocab={**vocabulary, "<end>": size - 1}, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def measure(tokenizer: PreTrainedTokenizerBase, vocab_size: int, answers: int) -> list[dict[str, Any]]:
    """Figures of each output format, in microseconds and milliseconds."""
    rows = []
    for name, given in OUTPUT_FORMATS.items():
        output_format = OutputFormat.of(**given)
        started = clock()
        compiler = GrammarCompiler(tokenizer, vocab_size, {tokenizer.eos_token_id})
        vocabulary_ms = 1e3 * (clock() - started)
        started = clock()
        shortest = len(compiler.compile(output_format).shortest_completion)
        compile_ms = 1e3 * (clock() - started)
        for budget, above in BUDGET_ABOVE_SHORTEST.items():
            times = [
                answer(compiler, output_format, shortest + above, vocab_size, seed)
                for seed in range(answers + 1)
            ][1:]
            constraint_us, sampler_us = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {
                    "output_format": name,
                    "budget": budget,
                    "shortest_tokens": shortest,
                    "vocabulary_ms": round(vocabulary_ms, 1),
                    "compile_ms": round(compile_ms, 1),
                    "constraint_us": round(constraint_us, 1),
                    "sampler_us": round(sampler_us, 1),
                }
            )
    return rows


def base_token_ms(base: Any) -> float:
    """Milliseconds of one token of an answer without an output format."""
    with AdapterHub(BatchingEngine(base), AdapterRegistry("adapters")) as hub:
        runs = []
        for _ in range(6):
            started = clock()
            usage = hub.generate("Hello", None, max_tokens=64, ignore_eos=True).usage
            runs.append(1e3 * (clock() - started) / usage.completion_tokens)
    return statistics.median(runs[1:])


def main() -> None:
    """Measures and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        help="tokens of a generated vocabulary, 1,000 or more; if not given, the demo base's",
    )
    parser.add_argument("--answers", type=int, default=40, help="number of answers for each output format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    if options.vocabulary:
        figures: dict[str, Any] = {
            "formats": measure(generated_tokenizer(options.vocabulary), options.vocabulary, options.answers)
        }
    else:
        base = load_base("adapterhub-demo", device="cpu")
        formats = measure(base.tokenizer, base.model.config.vocab_size, options.answers)
        figures = {"formats": formats, "base_token_ms": round(base_token_ms(base), 2)}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"{'format':<10}{'budget':<8}{'shortest':>9}{'vocabulary':>12}{'compile':>12}{'constraint':>16}{'sampler':>16}"
    )
    for row in figures["formats"]:
        print(
            f"{row['output_format']:<10}{row['budget']:<8}{row['shortest_tokens']:>9}"
            f"{row['vocabulary_ms']:>9.1f} ms{row['compile_ms']:>9.1f} ms"
            f"{row['constraint_us']:>10.0f} us/tok{row['sampler_us']:>10.0f} us/tok"
        )
    if "base_token_ms" in figures:
        print(f"one token of the demo base: {figures['base_token_ms']:.2f} ms")


if __name__ == "__main__":
    main()
