"""What an export to GGUF reports."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.export.gguf_checks import TokenCheck
from adapterhub.export.verification import Verification

REPORT_FILE = "gguf.json"
"""The file with the `GgufExport`, next to the GGUF files."""


@dataclass(frozen=True)
class GgufFile:
    """One written file.

    Attributes:
        file: Its name.
        type: Its type, such as `"q4_k_m"`.
        size_bytes: Its size.
        sha256: Of its bytes.
        tokens: How its tokenizer compares with transformers'; None if that was not checked.
        verification: How its predictions compare with the adapter's on its base; None if that was not checked.
    """

    file: str
    type: str
    size_bytes: int
    sha256: str
    tokens: TokenCheck | None
    verification: Verification | None


@dataclass(frozen=True)
class GgufExport:
    """What an export to GGUF has written; kept beside the files as `gguf.json`.

    Attributes:
        base: The base's name.
        base_digest: Its fingerprint's digest.
        adapter: `name@version`, or a blend; None for the base alone.
        adapter_digest: The adapter's digest.
        files: The files.
        checked_with: What computed the checks: `"llama.cpp"`, or `"transformers"` where it is not installed.
        notes: What a user of the files has to know.
    """

    base: str
    base_digest: str
    adapter: str | None
    adapter_digest: str | None
    files: tuple[GgufFile, ...]
    checked_with: str | None
    notes: tuple[str, ...]
