"""Writing the files of a trained adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapterhub.requests import prompts


def save_adapter(model: Any, out: Path, style: prompts.PromptStyle) -> None:
    """Writes `adapter_config.json`, `adapter_model.safetensors` and the chat template, the same bytes each time."""
    out.mkdir(exist_ok=True)
    if style.template:  # the base's may change
        (out / "chat_template.jinja").write_text(style.template, encoding="utf-8")
    # The default, "auto", asks the hub whether the base's vocabulary changed.
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()  # peft's unfilled template
    path = out / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # peft holds sets, whose order is arbitrary.
    for modules in ("target_modules", "exclude_modules"):
        settings[modules] = sorted(settings[modules] or ()) or None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
