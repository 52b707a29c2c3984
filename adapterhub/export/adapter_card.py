"""The model card (`README.md`) of an exported adapter: what its card knows, without what is only for its registry.

The format: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from pathlib import Path

from adapterhub.base.locating import is_local_base
from adapterhub.export.model_card import card_metadata, prompt_sections, training_sections
from adapterhub.lora.blending.resolving import Blend, ResolvedAdapter
from adapterhub.registry.cards import AdapterCard


def adapter_card(adapter: ResolvedAdapter, details: str = "") -> str:
    """The text of the model card.

    Args:
        adapter: The adapter, or the blend; its main part's card is used then.
        details: How its weights were written, in sentences.
    """
    card, base = adapter.main_card, public_base(adapter.main_card)
    metadata = card_metadata(
        adapter.ref,
        [card],
        library_name="peft",
        base_model=base,
        base_model_relation="adapter",
        tags=["lora"],
        license=card.license.lower() if card.license else None,
    )
    usage = (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base or "BASE"}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER_OR_REPOSITORY")\n```'
    )
    parts = [f"---\n{metadata}\n---", f"# {adapter.ref}", card.description, usage, details]
    if isinstance(adapter, Blend):
        parts.append(
            "\n".join(["## Blend\n", *(f"- {one.ref}: {weight:g}" for one, weight in adapter.parts)])
        )
    parts += [*training_sections(card), *prompt_sections(card)]
    return "\n\n".join(part for part in parts if part) + "\n"


def public_base(card: AdapterCard) -> str | None:
    """The base's name without the folders of this machine, where they mean something only here."""
    name = card.base.name
    return Path(name).name if name and is_local_base(name) else name
