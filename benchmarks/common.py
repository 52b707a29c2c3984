"""What the benchmarks share: options, interleaved timing, tables.

A ratio means little unless both times were taken side by side, so contenders are timed in alternation in one process
and every ratio is the median of the rounds' own ratios. The first round warms up and is dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from transformers.utils import logging

import adapterhub
from adapterhub.base.loading import Base, load_base
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, adapter_digest
from benchmarks.output import progress
from benchmarks.shapes import SHAPES, write_adapter, write_base

Times = dict[str, list[float]]
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def parser(description: str | None, *, shape: str = "200m", rounds: int = 12) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", choices=SHAPES, default=shape)
    options.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument(
        "--base", metavar="FOLDER", help="keep the random base here, and use it again if it is there already"
    )
    options.add_argument("--rank", type=int, default=16, help="of the adapters")
    options.add_argument(
        "--adapter-dtype", choices=["float32", "bfloat16"], help="that of the base's activations if not given"
    )
    options.add_argument("--rounds", type=int, default=rounds, help="the first is dropped")
    options.add_argument("--threads", type=int, help="of torch and bitsandbytes; as it is if not given")
    options.add_argument("--pin", type=int, nargs="+", metavar="CORE", help="run on these cores only (Linux)")
    options.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: this process's own time, for machines that others use too; not for GPUs",
    )
    options.add_argument("--json", action="store_true")
    return options


def settle(options: argparse.Namespace) -> None:
    """Sets threads and cores, and silences what the libraries print."""
    if options.pin:
        os.sched_setaffinity(0, options.pin)
    if options.threads and os.environ.get("OMP_NUM_THREADS") != str(options.threads):
        # torch and bitsandbytes each bring an OpenMP runtime, which reads this once, when it is loaded: start again.
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def base_folder(options: argparse.Namespace, scratch: Path) -> Path:
    """The folder of a random base as the options say, which is written if it is not there."""
    shape: str = options.shape
    folder = Path(options.base or scratch) / shape
    if not (folder / "tokenizer.json").exists():  # which is written last
        progress(f"writing a random base of shape {shape}")
        write_base(folder, shape, options.device)
    return folder


def random_base(options: argparse.Namespace, scratch: Path) -> Base:
    """A random base as the options say."""
    quantization = None if options.quantization == "none" else options.quantization
    return load_base(base_folder(options, scratch), quantization=quantization, device=options.device)


def random_adapters(
    options: argparse.Namespace, base: Base, count: int, scratch: Path
) -> list[StoredLoraRequest]:
    """Random adapters for a base under different names and digests; their weights are one file."""
    dtype = getattr(torch, options.adapter_dtype) if options.adapter_dtype else base.compute_dtype
    folder = write_adapter(scratch / "adapter", options.shape, rank=options.rank, dtype=dtype)
    return twins([folder], count, scratch / "twins")


def twins(folders: Sequence[Path], count: int, root: Path) -> list[StoredLoraRequest]:
    """Adapters under different digests that share the weights of a few: a pattern in the config matches no module."""
    made = []
    for number in range(count):
        source, folder = folders[number % len(folders)], root / f"a{number}"
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).hardlink_to(source / WEIGHTS_FILE)
        config = json.loads((source / CONFIG_FILE).read_bytes()) | {"alpha_pattern": {folder.name: 1}}
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        digest = adapter_digest(AdapterConfig.read(folder).settings, folder / WEIGHTS_FILE)
        made.append(StoredLoraRequest(folder.name, digest, folder))
    return made


def timed(do: Callable[[], object], options: argparse.Namespace) -> float:
    """Seconds that something takes, on the device too."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    started = clock()
    do()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def interleaved(contenders: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> Times:
    """Seconds of each contender's runs, in alternation, without the first round."""
    times: Times = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, do in contenders.items():
            times[name].append(timed(do, options))
    return {name: taken[1:] for name, taken in times.items()}


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def machine(device: str) -> dict[str, Any]:
    """Where and with what something was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "processor": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "avx512_bf16": "avx512_bf16" in flags,
        "instructions": [name for name in INSTRUCTIONS if f" {name}" in flags],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "adapterhub": adapterhub.__version__,
            **{package: metadata.version(package) for package in PACKAGES},
            "cuda": torch.version.cuda,
        },
    }


def report(options: argparse.Namespace, results: Mapping[str, Any], show: Callable[[], None]) -> None:
    """Prints results, for people or as JSON with all that they depend on."""
    if options.json:
        print(json.dumps({"options": vars(options), "machine": machine(options.device), **results}, indent=2))
        return
    where, base = machine(options.device), getattr(options, "model", None) or options.shape
    print(
        f"{base}, {options.quantization}, {options.device}; {where['gpu'] or where['processor']}, "
        f"{where['threads']} threads, load {where['load']:.1f}"
    )
    show()


def anonymous_mib() -> float:
    """Anonymous memory of this process (what is not a mapped file), MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def device_peak_mib(device: str) -> float | None:
    """Peak memory that torch allocated on a GPU since the last call, MiB; None without a GPU."""
    if device == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


class PeakMemory:
    """Watches the anonymous memory of this process, in a block.

    Attributes:
        before_mib: At the start of the block, MiB.
        peak_mib: The highest seen since, MiB.
    """

    def __enter__(self) -> Self:
        self.before_mib = self.peak_mib = anonymous_mib()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak_mib = max(self.peak_mib, anonymous_mib())
