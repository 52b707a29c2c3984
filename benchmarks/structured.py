"""What a form costs each token: the mask, and the guard that keeps an answer within its budget.

    python -m benchmarks.structured
    python -m benchmarks.structured --vocabulary 128000

Answers are drawn at random from the demo base's vocabulary, so that only the constraint and the sampler are timed, in
processor time of this process; the sampler's is that of all tokens it drew, refused ones too. `tight` answers may have
4 tokens more than the shortest one takes, `roomy` ones 200. Last comes one token of the demo base, in a batch of one;
with a vocabulary of another size, which is made of random words, there is no base.
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
from adapterhub.engine.decoding.grammar_constraint import GrammarCompiler
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.output_format import OutputFormat

clock = time.process_time  # this process's own time: other programs on the machine add nothing to it
SPARE = {"tight": 4, "roomy": 200}


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


FORMS: dict[str, dict[str, Any]] = {
    "schema": {"schema": Order},
    "regex": {"regex": r"[A-Z][a-z]+ [A-Z][a-z]+, [0-9]{4}-[0-9]{2}-[0-9]{2}"},
    "grammar": {"grammar": 'start: NUM | "(" start "+" start ")"\nNUM: /[0-9]+/'},
    "choices": {"choices": ["hardware", "software", "billing", "something else"]},
}


class Timed:
    """A sampler that adds up its own time."""

    def __init__(self, seed: int) -> None:
        self._sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), 0, torch.device("cpu"))
        self.seconds = 0.0

    def draw(self, logits: Logits, allowed: torch.Tensor) -> tuple[int, Any]:
        """Draws, and adds."""
        started = clock()
        drawn = self._sampler.draw(logits, [], allowed)
        self.seconds += clock() - started
        return drawn


def answer(
    compiler: GrammarCompiler, wanted: OutputFormat, budget: int, width: int, seed: int
) -> tuple[float, float]:
    """Microseconds a token in the constraint and in the sampler."""
    constraint, sampler, tokens = compiler.constraint(wanted, budget, ()), Timed(seed), 0
    chance, seconds = torch.Generator().manual_seed(seed), 0.0
    while not constraint.finished:
        (logits,) = Logits.of(torch.randn(1, width, generator=chance))
        started = clock()
        constraint.choose(partial(sampler.draw, logits), width)
        seconds += clock() - started
        tokens += 1
    return 1e6 * (seconds - sampler.seconds) / tokens, 1e6 * sampler.seconds / tokens


def of_words(size: int) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer of so many tokens: the bytes, words and parts of words of random letters, and an end."""
    chance, signs = random.Random(0), sorted(ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    words, merges = ["\u0120", *"etaoinshrdlucmfwypvbgkqjxz"], []
    while len(vocabulary) < size - 1:
        pair = chance.choice(words), chance.choice(words[1:27])
        if "".join(pair) not in vocabulary and len(pair[0]) < 12:
            vocabulary["".join(pair)] = len(vocabulary)
            words.append("".join(pair))
            merges.append(pair)
    made = Tokenizer(BPE(vocab={**vocabulary, "<end>": size - 1}, merges=merges))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def measure(tokenizer: PreTrainedTokenizerBase, width: int, answers: int) -> list[dict[str, Any]]:
    """Figures of each form, in microseconds and milliseconds, for a vocabulary and the width of its logits."""
    rows = []
    for name, given in FORMS.items():
        wanted = OutputFormat.of(**given)
        started = clock()
        compiler = GrammarCompiler(tokenizer, width, {tokenizer.eos_token_id})
        reading = 1e3 * (clock() - started)
        started = clock()
        least = len(compiler.compile(wanted).shortest)
        compiling = 1e3 * (clock() - started)
        for room, spare in SPARE.items():
            times = [answer(compiler, wanted, least + spare, width, seed) for seed in range(answers + 1)][1:]
            own, sampling = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {
                    "form": name,
                    "budget": room,
                    "shortest_tokens": least,
                    "read_ms": round(reading, 1),
                    "compile_ms": round(compiling, 1),
                    "constraint_us": round(own, 1),
                    "sampler_us": round(sampling, 1),
                }
            )
    return rows


def base_token_ms(base: Any) -> float:
    """Milliseconds that one token of a free answer takes."""
    with AdapterHub(BatchingEngine(base), AdapterRegistry("adapters")) as hub:
        runs = []
        for _ in range(6):
            started = clock()
            usage = hub.generate("Hello", None, max_tokens=64, ignore_eos=True).usage
            runs.append(1e3 * (clock() - started) / usage.completion_tokens)
    return statistics.median(runs[1:])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vocabulary", type=int, help="tokens of a made vocabulary, 1,000 or more; else the demo base's"
    )
    parser.add_argument("--answers", type=int, default=40, help="of each form")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    if options.vocabulary:
        figures: dict[str, Any] = {
            "forms": measure(of_words(options.vocabulary), options.vocabulary, options.answers)
        }
    else:
        base = load_base("adapterhub-demo", device="cpu")
        forms = measure(base.tokenizer, base.model.config.vocab_size, options.answers)
        figures = {"forms": forms, "base_token_ms": round(base_token_ms(base), 2)}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"{'form':<10}{'budget':<8}{'shortest':>9}{'read':>12}{'compile':>12}{'constraint':>16}{'sampler':>16}"
    )
    for row in figures["forms"]:
        print(
            f"{row['form']:<10}{row['budget']:<8}{row['shortest_tokens']:>9}"
            f"{row['read_ms']:>9.1f} ms{row['compile_ms']:>9.1f} ms"
            f"{row['constraint_us']:>10.0f} us/tok{row['sampler_us']:>10.0f} us/tok"
        )
    if "base_token_ms" in figures:
        print(f"one token of the demo base: {figures['base_token_ms']:.2f} ms")


if __name__ == "__main__":
    main()
