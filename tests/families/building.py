"""A tiny base of each family, an adapter for it, and what transformers and PEFT generate with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

from tests.families.configs import COMMON, FAMILIES
from tests.tiny import VOCABULARY, make_tokenizer

NEW_TOKENS = 12
LENGTHS = (1, 12, 30)
"""Tokens of the prompts: the last one is prefilled in chunks, and exceeds the windows of the tiny bases."""
MARGIN = 3e-4
"""The least distance between the two best logits for which a token counts: far above rounding in float32."""


def family_config(family: str) -> Any:
    """The tiny configuration of a family."""
    return _filled(CONFIG_MAPPING[family], FAMILIES[family])


def _filled(kind: Any, own: dict[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    aliases: dict[str, str] = kind.attribute_map
    taken = {aliases.get(name, name) for name in own}
    values = {
        name: value
        for name, value in COMMON.items()
        if aliases.get(name, name) in names and aliases.get(name, name) not in taken
    }
    text = kind.sub_configs.get("text_config")
    if text is not None and is_dataclass(text):  # not one that differs by checkpoint
        own = own | {"text_config": _filled(text, own.get("text_config", {}))}
    return kind(**values, **own)


def make_family(family: str, folder: Path) -> Path:
    """Writes the tiny base of a family, with random weights, into a folder."""
    torch.manual_seed(1)
    config = family_config(family)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # or the last token decides alone where the output layer is tied to the embeddings
        model.get_input_embeddings().weight.mul_(0.2)
    model.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)  # with the parts that a text decoder leaves out
    make_tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Answer:
    """A greedy completion.

    Attributes:
        token_ids: Its tokens.
        logprobs: The log-probability of each.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@torch.inference_mode()
def generated(model: Any, prompt: Sequence[int]) -> Answer | None:
    """What `generate` of transformers or PEFT answers; None if a token is nearly tied with another."""
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    model = copy.deepcopy(model)  # some keep a state in their modules from one call to the next
    model.generation_config.eos_token_id = None
    out = model.generate(input_ids=torch.tensor([prompt]), generation_config=settings)
    logits = torch.cat(out.logits).float()
    best = logits.topk(2).values
    if (best[:, 0] - best[:, 1]).min() < MARGIN:
        return None
    tokens = out.sequences[0, len(prompt) :]
    chosen = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return Answer(tuple(tokens.tolist()), tuple(chosen.tolist()))


def prompt_of(length: int, seed: int) -> list[int]:
    """A prompt of random tokens that are not special."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY - 40, (length,), generator=random).tolist()


def adapter_targets(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What an adapter may change, the most first: a name for it, and PEFT's settings."""
    fused = sorted(
        {
            ".".join(name.split(".")[-2:])
            for name, parameter in model.named_parameters()
            if parameter.ndim == 3 and name.split(".")[-2] == "experts"
        }
    )
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    plain -= {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    choices: dict[str, Any] = {
        "linear layers": "all-linear",
        "linear layers but routers": plain,
        "linear layers but out_proj": {one for one in plain if "out_proj" not in one},
        "attention": {one for one in plain if "attn" in one or "attention" in one},
    }
    for name, modules in choices.items():
        if fused and name != "attention":
            yield f"{name}, experts", {"target_modules": modules, "target_parameters": fused}
        yield name, {"target_modules": modules}


def adapted(model: Any, settings: dict[str, Any]) -> PeftModel:
    """The model with a random adapter, large enough to change what it answers."""
    torch.manual_seed(2)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    peft = get_peft_model(model, config).eval()
    for name, parameter in peft.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return peft
