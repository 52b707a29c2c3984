"""A user's checkout of llama.cpp, whose converter writes architectures that are not written here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import ConfigError, ExportError
from adapterhub.gguf.quantization import FILE_TYPES

CONVERT_SCRIPT = "convert_hf_to_gguf.py"
_QUANTIZE = "llama-quantize"
_QUANTIZE_FOLDERS = ("build/bin", "build/bin/Release", ".")
_SHOWN = 400
"""Characters of a program's last words in an error."""


@dataclass(frozen=True)
class LlamaCppCheckout:
    """Programs of llama.cpp; construct it with `of`.

    Attributes:
        convert_script: Converts a model of transformers.
        quantize_bin: Quantises a GGUF file; None if it was not built.
    """

    convert_script: Path | None = None
    quantize_bin: Path | None = None

    @classmethod
    def of(cls, folder: Path) -> LlamaCppCheckout:
        """The programs in a checkout.

        Raises:
            ConfigError: It has no converter.
        """
        script = folder / CONVERT_SCRIPT
        if not script.is_file():
            raise ConfigError(
                f"{str(folder)!r} is no checkout of llama.cpp: it has no {CONVERT_SCRIPT}.",
                hint="Run `git clone https://github.com/ggml-org/llama.cpp`, and give its folder.",
            )
        built = (folder / place / _QUANTIZE for place in _QUANTIZE_FOLDERS)
        return cls(script, next((path for path in built if path.is_file()), None))

    def convert(self, model: Path, out: Path, file_type: str, name: str) -> None:
        """Converts a model of transformers to f32, f16, bf16 or q8_0.

        Raises:
            ExportError: The converter failed.
        """
        options = ("--outfile", out, "--outtype", file_type, "--model-name", name)
        _run([sys.executable, self.convert_script, model, *options])
        _check_written(out)

    def quantize(self, source: Path, out: Path, file_type: str, threads: int) -> None:
        """Quantises a GGUF file.

        Raises:
            ExportError: The program failed.
        """
        kind = FILE_TYPES[file_type].split("_", 1)[1]
        _run([self.quantize_bin, source, out, kind, threads])
        _check_written(out)


def _run(command: Sequence[object]) -> None:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    except OSError as error:
        raise ExportError(
            f"{words[0]!r} could not be run: {error.strerror}.", hint="Check its path and permissions."
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SHOWN:]
        raise ExportError(
            f"llama.cpp's {Path(words[1] if words[0] == sys.executable else words[0]).name} failed: {said}",
            hint="Install what its requirements.txt names into this environment, or update the checkout.",
        )


def _check_written(out: Path) -> None:
    if not out.is_file():
        raise ExportError(f"llama.cpp's program wrote no {out.name}.", hint="Update the checkout.")
