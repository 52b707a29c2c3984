from __future__ import annotations

from pathlib import Path

from adapterhub.registry import AdapterCard

GUIDE = Path(__file__).parents[2] / "docs" / "registry.md"


def test_the_guide_lists_the_fields_as_the_code_documents_them() -> None:
    rows = [f"| `{name}` | {field.description} |" for name, field in AdapterCard.model_fields.items()]
    table = GUIDE.read_text(encoding="utf-8").partition("| field | meaning |")[2].strip().splitlines()
    assert table[1:] == rows
