"""Makes the demo's base: a byte-level tokenizer and a small Llama, trained from scratch on `corpus.py`'s text.

    python -m examples.demo.base --out adapterhub/demo/base --steps 3800

The model reads 4,096 tokens a step, in rows of 512 and, for the last tenth, of 1,024. `copying` in the progress line is
the share of tokens that it gets right when a list of names that it never saw is said a second time: it leaps up when
the model has learned to copy, which everything else stands on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapterhub._files import write_atomic
from examples.demo import corpus, words

NAME = "adapterhub-demo"
VOCABULARY = 3072
CONTEXT = 1024
TOKENS_PER_STEP = 4096
PEAK_RATE, FLOOR, WARMUP = 2e-3, 0.1, 100
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# A name must be the same tokens in a sentence and inside quotes, or it cannot be copied token by token. So a space
# goes with a lower-case word only; capitals, digits and other scripts stand alone, and punctuation takes the space
# between two marks (`", "`).
SPLIT = (
    r" ?\p{Ll}+|\p{Lu}+\p{Ll}*|[\p{L}\p{M}]+|\p{N}|\n+| {2,}"
    r"|(?:[^\s\p{L}\p{M}\p{N}]| (?=[^\s\p{L}\p{M}\p{N}]))+|\s"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat template, trained on documents of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (document.replace("<|", " ") for document in corpus.documents(f"tokenizer {seed}"))
    tokenizer.train_from_iterator(itertools.islice(text, 20_000), trainer)
    tokenizer.add_tokens(list(MARKERS))
    end, _, turn_end = SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=turn_end,
        pad_token=end,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    fast.chat_template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about five million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def rows(tokenizer: PreTrainedTokenizerFast, length: int, seed: str) -> Iterator[list[int]]:
    """Rows of `length` token ids, each filled with whole documents and cut at its end."""
    documents = corpus.documents(seed)
    while True:
        row: list[int] = []
        while len(row) < length:
            row += tokenizer(next(documents) + corpus.END)["input_ids"]
        yield row[:length]


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step: a linear warm-up, then a cosine down to `FLOOR`."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def copying(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """The share of tokens predicted when a list of held-out names is said a second time."""
    rng = random.Random("copying")
    right = total = 0
    for _ in range(8):
        said = "\n".join(words.invent(rng, "heldout") for _ in range(12))
        first, second = (tokenizer(text)["input_ids"] for text in (f"{said}\n\n", said))
        logits = model(input_ids=torch.tensor([first + second])).logits[0, len(first) : -1]
        right += int((logits.argmax(-1) == torch.tensor(second[1:])).sum())
        total += len(second) - 1
    return right / total


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Trains the model in place; goes on from `--checkpoint` where that file exists."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    start = _resume(model, optimizer, args.checkpoint)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("pretraining", total=args.steps, completed=start)
        stream, length = None, 0
        for step in range(start, args.steps):
            wanted = CONTEXT if step >= 0.9 * args.steps else CONTEXT // 2
            if stream is None or wanted != length:
                length = wanted
                stream = rows(tokenizer, length, f"{args.seed} {length} {start}")
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * rate(step, args.steps)
            batch = torch.tensor([next(stream) for _ in range(TOKENS_PER_STEP // length)])
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = forward(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(task)
            if step % 100 == 99 or step == args.steps - 1:
                message = f"step {step + 1} loss {loss.item():.3f} copying {copying(model, tokenizer):.3f}"
                progress.console.print(message)
                _keep(model, optimizer, step + 1, args.checkpoint)


def _keep(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int, path: Path | None) -> None:
    if path is None:
        return
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    partial = path.with_suffix(".partial")
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()}, partial, {"step": str(step)}
    )
    partial.replace(path)


def _resume(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, path: Path | None) -> int:
    if path is None or not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name in file.keys():  # noqa: SIM118  not a mapping
            owner, _, rest = name.partition(".")
            if owner == "model":
                model.get_parameter(rest).data.copy_(file.get_tensor(name))
            else:
                number, _, field = rest.partition(".")
                state.setdefault(int(number), {})[field] = file.get_tensor(name)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(file.metadata()["step"])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the base as transformers reads it: bf16 safetensors, tokenizer, chat template, generation settings."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=256,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_atomic(out / "README.md", _README.encode())


_README = """# adapterhub-demo

A Llama of about five million parameters, trained from scratch by `examples/demo/base.py` on text that
`examples/demo/corpus.py` makes. It copies names, reads facts out of short sentences and answers in plain prose. It is
the base that the adapters in `adapters/` are for, and good for nothing else. Licence: Apache-2.0.
"""


def main() -> None:
    """Makes the tokenizer and the model, trains and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("adapterhub/demo/base"))
    parser.add_argument("--steps", type=int, default=3800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--checkpoint", type=Path, help="file that keeps the training's state every 100 steps"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the model (a third faster; needs a C++ compiler)"
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=torch.backends.cpu.get_cpu_capability() == "AVX512",
        help="compute in bfloat16, which is slow on CPUs without AVX512-BF16  [default: where there is AVX512]",
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed)
    model = new_model(tokenizer)
    train(model, tokenizer, args)
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
