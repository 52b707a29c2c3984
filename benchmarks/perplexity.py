"""What quantisation costs in quality: the perplexity of a base with the weights of each kind.

    python -m benchmarks.perplexity --model SmolLM2-135M-Instruct --texts train_1500.jsonl --shift 16

Linear layers but the output layer get the weights that each quantisation stands for, dequantised, and everything is
computed in float32: what is measured is the weights' error alone. Without `--texts` it reads this repository's README.

A base that was made of llama.cpp's Q4_0 or Q4_1 has groups of 32 weights that are even steps apart, and int4 keeps
them as they are. `--shift` lets groups begin elsewhere, as they would in any other base.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn

from adapterhub.base.int4 import Int4Linear
from adapterhub.base.loading import load_base
from adapterhub.base.weight_only import Int8WeightOnlyLinear, WeightOnlyLinear

README = Path(__file__).parents[1] / "README.md"


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="BASE", default="adapterhub-demo", help="[adapterhub-demo]")
    parser.add_argument("--texts", metavar="FILE", type=Path, nargs="+", default=[README])
    parser.add_argument("--windows", type=int, default=16, help="texts of --tokens tokens [16]")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a window [512]")
    parser.add_argument("--shift", type=int, default=0, help="weights by which groups begin later [0]")
    parser.add_argument("--threads", type=int, default=1, help="[1]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = measure(options.model, options.texts, options.windows, options.tokens, options.shift)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'quantisation':<20}{'error of weights':>18}{'perplexity':>12}")
    for name, row in rows.items():
        print(f"{name:<20}{row['error']:>17.2%} {row['perplexity']:>12.3f}")


def measure(
    model: str, texts: list[Path], windows: int, tokens: int, shift: int
) -> dict[str, dict[str, float]]:
    """Quantisation -> the relative error of weights, and the perplexity."""
    base = load_base(model, quantization=None, compute_dtype="float32", device="cpu")
    layers = [
        module
        for module in base.model.modules()
        if type(module) is nn.Linear and module is not base.model.get_output_embeddings()
    ]
    token_ids = base.tokenizer("\n\n".join(path.read_text() for path in texts)).input_ids
    tokens = min(tokens, len(token_ids))
    count = min(windows, len(token_ids) // tokens)
    read = torch.tensor(token_ids[: count * tokens]).view(count, tokens)
    own = [layer.weight.data for layer in layers]
    rows = {"none": {"error": 0.0, "perplexity": perplexity(base.model, read)}}
    for name, stored in KINDS.items():
        wrong = total = 0.0
        for layer, weight in zip(layers, own, strict=True):
            layer.weight.data = stored(weight.roll(-shift, 1)).roll(shift, 1)
            wrong += float((layer.weight.data - weight).square().sum())
            total += float(weight.square().sum())
        rows[name] = {"error": math.sqrt(wrong / total), "perplexity": perplexity(base.model, read)}
    return rows


@torch.inference_mode()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Of token ids, shape (windows, tokens), each window read alone."""
    losses = [
        nn.functional.cross_entropy(model(input_ids=one[None]).logits[0, :-1].float(), one[1:])
        for one in windows
    ]
    return float(torch.stack(losses).mean().exp())


def _four_bits(quant_type: str) -> Callable[[torch.Tensor], torch.Tensor]:
    def stored(weight: torch.Tensor) -> torch.Tensor:
        data, state = quantize_4bit(weight.contiguous(), quant_type=quant_type, compress_statistics=True)
        values: torch.Tensor = dequantize_4bit(data, state)
        return values.view(weight.shape)

    return stored


def _weight_only(kind: type[WeightOnlyLinear]) -> Callable[[torch.Tensor], torch.Tensor]:
    def stored(weight: torch.Tensor) -> torch.Tensor:
        out_features, in_features = weight.shape
        if not kind.fits(in_features, out_features):
            return weight
        layer = kind(in_features, out_features)
        layer.load_state_dict(kind.quantized(weight), assign=True)
        return layer.dequantize(torch.float32)

    return stored


KINDS = {
    "int8_weight_only": _weight_only(Int8WeightOnlyLinear),
    "int4": _weight_only(Int4Linear),
    "nf4": _four_bits("nf4"),
    "fp4": _four_bits("fp4"),
}


if __name__ == "__main__":
    main()
