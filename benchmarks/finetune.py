"""What a fine-tune costs: `train_adapter` against plain peft and TRL, on the same batches.

    OMP_NUM_THREADS=1 python -m benchmarks.finetune --base SmolLM2-135M-Instruct --data train.jsonl

Both train a LoRA adapter of the same settings on the same token ids and labels, in the same order and from the same
initial weights, so their losses have to be the same. Each contender runs in its own process, since a process does not
return memory to the system; they alternate. The first step warms up and does not count. Memory is the peak of anonymous
memory (without mapped files) above that of the imports.

With `--dtype bfloat16 --in-float32` adapterhub trains once more, in float32: the distance of both from those losses is
what bfloat16 rounds away.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.common import PeakMemory, ratio
from benchmarks.output import progress, table
from benchmarks.shapes import SHAPES, VOCABULARY, write_base

CONTENDERS = ("adapterhub", "peft + trl")
IN_FLOAT32 = "in float32"
RANK = 16


class StepClock:
    """Wall and CPU time at the end of each step, and the losses."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def step(self, loss: float) -> None:
        """Notes the end of a step."""
        self.losses.append(loss)
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def result(self) -> dict[str, Any]:
        """Seconds a step without the first, and the losses."""
        steps = len(self.wall) - 1
        return {
            "seconds": (self.wall[-1] - self.wall[0]) / steps,
            "cpu_seconds": (self.cpu[-1] - self.cpu[0]) / steps,
            "losses": self.losses,
        }


def configuration(options: argparse.Namespace, base: Path, data: Path) -> Any:
    """The run, in our configuration."""
    from adapterhub.training import FinetuneConfig

    quantized = options.quantization != "none"
    return FinetuneConfig.model_validate(
        {
            "name": "benchmark",
            "base": str(base),
            "data": {"train": str(data)},
            "lora": {"r": RANK, "alpha": 2 * RANK},
            "train": {
                "max_steps": options.steps,
                "batch_size": options.batch_size,
                "max_length": options.max_length,
                "gradient_checkpointing": options.gradient_checkpointing,
                # What TRL makes of the weights, so that the losses can be compared.
                "adapter_dtype": "bfloat16" if quantized else "float32",
            },
            "quantization": options.quantization if quantized else None,
            "compute_dtype": options.dtype,
        }
    )


def train_ours(options: argparse.Namespace, base: Path, data: Path, clock: StepClock) -> None:
    """Trains with adapterhub."""
    from adapterhub.training import train_adapter

    with tempfile.TemporaryDirectory() as out:
        config = configuration(options, base, data)
        train_adapter(config, Path(out), progress=lambda step: clock.step(step.loss or 0.0))


def train_theirs(options: argparse.Namespace, base: Path, data: Path, clock: StepClock) -> None:
    """Trains with peft and TRL alone, as in their documentation, but on our token ids and in our order."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from adapterhub.dataset.records import read_records
    from adapterhub.requests.prompts import choose_style
    from adapterhub.training.sft import EpochSampler
    from adapterhub.training.tokenizing import tokenize

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                clock.step(logs["loss"])

    class InOurOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return EpochSampler(self)

    config, dtype = configuration(options, base, data), getattr(torch, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    style = choose_style(tokenizer.chat_template)
    examples = tokenize(read_records(data), tokenizer, style, max_length=options.max_length).examples
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        device_map="cpu",
        quantization_config=None if options.quantization == "none" else four_bits,
    )
    with tempfile.TemporaryDirectory() as out:
        trainer = InOurOrder(
            model=model,
            args=SFTConfig(
                output_dir=out,
                max_steps=options.steps,
                per_device_train_batch_size=options.batch_size,
                learning_rate=config.train.learning_rate,
                gradient_checkpointing=options.gradient_checkpointing,
                max_length=options.max_length,
                dataset_kwargs={"skip_prepare_dataset": True},
                seed=config.train.seed,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_dict(
                {"input_ids": [one.input_ids for one in examples], "labels": [one.labels for one in examples]}
            ),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=RANK,
                lora_alpha=2 * RANK,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock()],
        )
        trainer.train()


def run(contender: str, options: argparse.Namespace, base: Path, data: Path) -> dict[str, Any]:
    """Trains once in this process, watching its memory."""
    import bitsandbytes
    import transformers
    import trl

    del bitsandbytes
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    train = train_theirs if contender == "peft + trl" else train_ours
    if contender == IN_FLOAT32:
        options = argparse.Namespace(**{**vars(options), "dtype": "float32"})
    trl.SFTTrainer  # noqa: B018  # imported lazily, and its memory is not the run's
    clock = StepClock()
    with PeakMemory() as memory:
        train(options, base, data, clock)
    return {"memory_mib": memory.peak_mib - memory.before_mib, **clock.result()}


def write_random_base(folder: Path, shape: str) -> Path:
    """A random base with a tokenizer of made-up words that can be written one after another."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    write_base(folder, shape)
    words = ["<unk>", "<s>", "</s>", "user", "assistant", *(f"w{number}" for number in range(5, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    fast.save_pretrained(folder)
    return folder


def write_dialogues(path: Path, records: int) -> Path:
    """Random questions and answers in the words of a random base."""
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(5, VOCABULARY)}" for _ in range(draw.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(records):
            turns = (("user", words(60, 200)), ("assistant", words(10, 60)))
            print(
                json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}), file=file
            )
    return path


def measure(options: argparse.Namespace, arguments: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Contender -> one result a round."""
    contenders = (*CONTENDERS, IN_FLOAT32) if options.in_float32 else CONTENDERS
    results: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base or write_random_base(Path(scratch) / "base", options.shape)
        data = options.data or write_dialogues(
            Path(scratch) / "data.jsonl", options.steps * options.batch_size
        )
        for number in range(options.rounds):
            for contender in contenders:
                progress(f"round {number + 1} of {options.rounds}: {contender}")
                command = [sys.executable, "-m", "benchmarks.finetune", *arguments]
                command += ["--run", contender, str(base), str(data)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
                if done.returncode:
                    raise SystemExit(done.stderr)
                results[contender].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def summary(results: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """How many times as fast adapterhub is, its part of the memory, and how far the losses are apart."""
    ours, theirs = (results[contender] for contender in CONTENDERS)

    def column(rounds: list[dict[str, Any]], name: str) -> list[float]:
        return [one[name] for one in rounds]

    def differences(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
        rounds = zip(some, others, strict=True)
        return [
            abs(a - b) for one, other in rounds for a, b in zip(one["losses"], other["losses"], strict=True)
        ]

    exact = results.get(IN_FLOAT32)
    from_float32 = {"adapterhub": ours, "peft + trl": theirs} if exact else {}
    return {
        "speedup": ratio(column(theirs, "seconds"), column(ours, "seconds")),
        "cpu_speedup": ratio(column(theirs, "cpu_seconds"), column(ours, "cpu_seconds")),
        "memory": ratio(column(ours, "memory_mib"), column(theirs, "memory_mib")),
        "loss_difference": max(differences(ours, theirs)),
        **{
            f"{name} from float32": statistics.mean(differences(losses, exact or []))
            for name, losses in from_float32.items()
        },
    }


def show(results: dict[str, list[dict[str, Any]]], figures: dict[str, float]) -> None:
    """Prints a table of the medians."""

    def take(rounds: list[dict[str, Any]], name: str) -> float:
        return float(statistics.median(one[name] for one in rounds))

    rows = [
        (
            contender,
            take(rounds, "seconds"),
            take(rounds, "cpu_seconds"),
            take(rounds, "memory_mib"),
            *rounds[0]["losses"][:: max(1, len(rounds[0]["losses"]) - 1)],
        )
        for contender, rounds in results.items()
    ]
    table(("contender", "s/step", "CPU s/step", "MiB", "first loss", "last loss"), rows)
    print(
        f"{figures['speedup']:.2f} x as fast ({figures['cpu_speedup']:.2f} x in CPU time), "
        f"{figures['memory']:.2f} x the memory, losses differ by at most {figures['loss_difference']:.1e}"
    )
    for contender in CONTENDERS:
        if (name := f"{contender} from float32") in figures:
            print(f"losses of {name}: {figures[name]:.1e} on average")


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="a random base of --shape if not given")
    parser.add_argument("--shape", choices=SHAPES, default="200m")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSON Lines; random if not given")
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--in-float32", action="store_true", help="train in float32 too, as the exact losses")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if options.run:
        contender, base, data = options.run
        print(json.dumps(run(contender, options, Path(base), Path(data))))
        return
    results = measure(options, arguments)
    figures = summary(results)
    if options.json:
        print(
            json.dumps(
                {"options": {**vars(options), "run": None}, "results": results, **figures}, default=str
            )
        )
    else:
        show(results, figures)


if __name__ == "__main__":
    main()
