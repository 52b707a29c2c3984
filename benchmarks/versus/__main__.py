"""This engine beside vLLM's CPU build, llama.cpp, PEFT and transformers, each as well as it can be run.

    python -m benchmarks.versus --models smollm2 200m --threads 1 2 --vllm-python VENV/bin/python --markdown

All contenders get the same prompts and give as many tokens, greedily. Each is a process of its own; they are asked in
turn, round by round, after a short one that warms up and is dropped; the best round counts. A decode step is the time
of an answer without that of its first token, divided by the other tokens. PEFT mixes adapters in one batch, and is
asked for the bare base without its layers. llama.cpp has one adapter in a batch, so requests for several are answered
one after the other. vLLM runs twice: without LoRA for the bare base, and with it for adapters. A contender that is not
installed is named as missing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from adapterhub.errors import AdapterHubError
from benchmarks.common import machine, twins
from benchmarks.gguf_base import write_q4_0
from benchmarks.output import progress, table
from benchmarks.shapes import SHAPES, write_adapter, write_base
from benchmarks.versus.figures import ROWS, Plan, agreement
from benchmarks.versus.process import LABELS, Entry, Process, start
from benchmarks.versus.tables import markdown, missing, tables
from benchmarks.versus.worker import Task

WARM_UP = 3
"""Tokens of an answer in the first round."""
_PLAIN = {True: "bfloat16", False: "float32"}


def default_contenders() -> list[str]:
    """Each as well as this processor runs it: 16 bits where it multiplies them, else float32."""
    dtype = _PLAIN[machine("cpu")["avx512_bf16"]]
    return ["adapterhub", f"adapterhub:none:{dtype}", "llama_cpp", f"vllm:none:{dtype}", f"peft:none:{dtype}"]


def prepare(model: str, options: argparse.Namespace, work: Path, scratch: Path) -> Task:
    """Writes what the contenders read: a random base if it is a shape, adapters, and a file for llama.cpp."""
    name = Path(model).name
    folder = work / name if model in SHAPES else Path(model).resolve()
    if not (folder / "tokenizer.json").exists():
        progress(f"writing a random base of shape {model}")
        write_base(folder, model)
    file = work / f"{name}-q4_0.gguf"
    if any(entry.engine == "llama_cpp" for entry in options.contenders) and not file.exists():
        progress(f"writing {file.name}")
        with suppress(ImportError, AdapterHubError):  # the contender's own process says that it is missing
            write_q4_0(folder, file)
    source = write_adapter(scratch / name / "source", folder, rank=options.rank, dtype=torch.bfloat16)
    adapters = {one.name: str(one.folder) for one in twins([source], ROWS, scratch / name)}
    return Task(
        engine="",
        weights=None,
        compute_dtype=None,
        kinds=[],
        folder=str(folder),
        gguf=str(file) if file.exists() else None,
        adapters=adapters,
        rank=options.rank,
        rows=ROWS,
        tokens=-(-(options.plan.room + 1) // 64) * 64,
        threads=0,
        clock=options.clock,
    )


def measure(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each contender, with one base and number of threads."""
    with (Path(options.log) if options.log else Path(os.devnull)).open("a") as log:
        processes: list[tuple[Entry, list[Process]]] = []
        try:
            for entry in options.contenders:
                progress(f"{Path(task.folder).name}, {task.threads} threads: starting {entry.label}")
                own = replace(
                    task, engine=entry.engine, weights=entry.weights, compute_dtype=entry.compute_dtype
                )
                processes.append((entry, start(entry, own, options.vllm_python, log)))
            for process in (
                process for entry, own in processes for process in own if entry.engine != "adapterhub"
            ):
                process.wait()
            return _rounds(processes, task, options)
        finally:
            for _, own_processes in processes:
                for process in own_processes:
                    process.close()


def _rounds(
    processes: Sequence[tuple[Entry, Sequence[Process]]], task: Task, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Has all contenders answer in turn."""
    vocabulary = json.loads((Path(task.folder) / "config.json").read_bytes())["vocab_size"]
    seconds: list[dict[str, list[float]]] = [defaultdict(list) for _ in processes]
    answers: list[dict[str, list[list[int]]]] = [defaultdict(list) for _ in processes]
    for number in range(options.rounds + 1):
        progress(f"round {number} of {options.rounds}")
        plan = options.plan if number else replace(options.plan, tokens=WARM_UP)
        for run in plan.runs(["base", "adapters"]):
            prompts, names = run.prompts(vocabulary, number), run.names()
            for (_, own), times, given in zip(processes, seconds, answers, strict=True):
                for process in own:
                    if process.missing is None and run.kind in process.kinds:
                        taken, tokens = process.ask(prompts, names, run.tokens)
                        given[run.kind] += tokens
                        if number:  # the first warms up
                            times[run.name].append(taken)
    reference = next(
        (given for (entry, _), given in zip(processes, answers, strict=True) if entry.engine == "peft"), {}
    )
    return [
        {
            "model": Path(task.folder).name,
            "threads": task.threads,
            "contender": entry.label,
            "about": own[0].about,
            "missing": next((process.missing for process in own if process.missing), None),
            "figures": options.plan.figures(times),
            "agreement": {
                kind: agreement(given[kind], tokens) for kind, tokens in reference.items() if given[kind]
            },
            "seconds": times,
        }
        for (entry, own), times, given in zip(processes, seconds, answers, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints, or prints what was measured before."""
    options = _options().parse_args(arguments)
    options.plan = Plan(options.tokens, options.prompt, options.prefill)
    if options.results:
        results = [json.loads(Path(file).read_bytes()) for file in options.results]
    else:
        results = [_measured(options)]
    if options.output:
        Path(options.output).write_text(json.dumps(results[0], indent=1))
    if options.json:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=1))
    elif options.markdown:
        print(markdown(results))
    else:
        for title, head, rows in tables(results):
            print(f"\n{title}")
            table(head, rows)
        print(*missing(results), sep="\n")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started, found = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(options.base or scratch)
        work.mkdir(parents=True, exist_ok=True)
        for model in options.models:
            task = prepare(model, options, work, Path(scratch) / "adapters")
            for threads in options.threads:
                found += measure(replace(task, threads=threads), options)
    shown = {
        name: getattr(options, name) for name in ("rounds", "tokens", "prompt", "prefill", "rank", "clock")
    }
    return {
        "machine": {**machine("cpu"), "threads": options.threads},
        "options": shown,
        "seconds": round(time.monotonic() - started),
        "titles": options.plan.titles(),
        "results": found,
    }


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.versus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add(
        "--models",
        nargs="+",
        default=["smollm2", "200m"],
        help=f"folders of Llamas, or shapes: {', '.join(SHAPES)}",
    )
    add("--threads", type=int, nargs="+", default=[1, 2])
    add(
        "--contenders",
        type=Entry.parse,
        nargs="+",
        default=[Entry.parse(text) for text in default_contenders()],
        metavar="ENGINE[:WEIGHTS[:DTYPE]]",
        help=f"of {', '.join(LABELS)}; by default {' '.join(default_contenders())}",
    )
    add("--vllm-python", metavar="FILE", help="the interpreter of an environment that has vLLM")
    add("--base", metavar="FOLDER", help="keep random bases and files for llama.cpp here, and use them again")
    add("--rank", type=int, default=16, help="of the adapters")
    add("--rounds", type=int, default=3, help="beside one that warms up")
    add("--tokens", type=int, default=17, help="of each answer")
    add("--prompt", type=int, default=32, help="tokens of the prompts that are answered")
    add("--prefill", type=int, default=512, help="tokens of the long prompt")
    add(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: the process's own time, with one thread",
    )
    add("--log", metavar="FILE", help="what the contenders print")
    add("--output", metavar="FILE", help="keep the results here")
    add("--results", metavar="FILE", nargs="+", help="print results that were kept, and measure nothing")
    add("--json", action="store_true")
    add("--markdown", action="store_true", help="as for docs/performance.md")
    return options


if __name__ == "__main__":
    main()
