"""The model card (`README.md`) of an exported adapter: what its card knows, without what is only for its registry.

The format: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapterhub.base.auto_class import trained_class_name
from adapterhub.export.base_name import base_link, public_base
from adapterhub.export.model_card import card_metadata, common_license, prompt_sections, training_sections
from adapterhub.lora.blending.resolving import ResolvedAdapter

_PEFT_USAGE = """\
```python
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{place}")
```"""
_MLX_USAGE = """\
```sh
mlx_lm.generate --model {base} --adapter-path {place} --prompt "..."
```"""
_LLAMA_CPP_USAGE = """\
```sh
llama-cli -m BASE.gguf --lora ADAPTER.gguf    # BASE.gguf is a GGUF file of {base}
```"""
USAGE = {"peft": _PEFT_USAGE, "mlx": _MLX_USAGE, "llama.cpp": _LLAMA_CPP_USAGE}
"""The library that loads an adapter -> how."""
PLACE = "FOLDER_OR_REPOSITORY"
"""Stands in a model card for where the adapter will be."""


def adapter_card(
    adapter: ResolvedAdapter, details: str = "", *, library: str = "peft", modules: Iterable[str] = ()
) -> str:
    """The text of the model card.

    Args:
        adapter: The adapter, or the blend.
        details: How its weights were written, in sentences.
        library: What loads it, one of `USAGE`.
        modules: What the adapter changes, as its file names them: they tell which class PEFT loads the base with.
    """
    cards, base = [card for card, _ in adapter.parts], public_base(adapter.main_card)
    metadata = card_metadata(
        adapter.ref,
        cards,
        library_name=library,
        **base_link(base, "adapter"),
        tags=["lora"],
        license=common_license([card.license for card in cards]),
    )
    parts = [f"---\n{metadata}\n---", f"# {adapter.ref}", *(card.description for card in cards)]
    fingerprint = adapter.main_card.base.fingerprint
    auto_class = trained_class_name(fingerprint.model_type if fingerprint else "unknown", modules)
    parts += [USAGE[library].format(base=base or "BASE", place=PLACE, auto_class=auto_class), details]
    is_blend = adapter.version is None
    if is_blend:
        parts.append("\n".join(_parts(adapter)))
    for card in cards:
        parts += training_sections(card, of=f" of {card.ref}" if is_blend else "")
    parts += prompt_sections(adapter.main_card)
    return "\n\n".join(part for part in parts if part) + "\n"


def _parts(adapter: ResolvedAdapter) -> Iterator[str]:
    yield "## Parts\n\nThe adapter is the weighted sum of these, and the terms of all apply.\n"
    for card, weight in adapter.parts:
        yield f"- {card.ref}: weight {weight:g}, {card.digest}, licence {card.license or 'not recorded'}"
