"""Writing the GGUF files of one model: those of 16 bits, and the quantised ones that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.export.llama_cpp_checkout import LlamaCppCheckout
from adapterhub.export.llama_cpp_file import has_llama_cpp, quantize_file
from adapterhub.gguf.hyperparameters import Field
from adapterhub.gguf.model import write_model
from adapterhub.gguf.quantization import UNQUANTIZED, WITHOUT_LLAMA_CPP
from adapterhub.gguf.tokenizer import GgufTokenizer

Progress = Callable[[int, int, str], None]

SOURCE_FILE = ".source.gguf"
"""The 16-bit file that others are made of, where it does not stay."""


def file_name(file_type: str) -> str:
    """The name of the file of a type."""
    return f"model-{file_type}.gguf"


@dataclass(frozen=True)
class GgufFilesWriter:
    """Writes the files of one model.

    Attributes:
        model: The model's folder.
        folder: Where the files go.
        types: Their types.
        tokenizer: The tokenizer in llama.cpp's form; None if the checkout's converter writes the files.
        general: Fields such as `"general.name"`.
        checkout: Programs of llama.cpp.
        threads: How many threads quantise.
    """

    model: Path
    folder: Path
    types: Sequence[str]
    tokenizer: GgufTokenizer | None
    general: Mapping[str, Field]
    checkout: LlamaCppCheckout
    threads: int

    def write(self, progress: Progress) -> Iterator[tuple[str, str]]:
        """Writes the files, and yields the name and the type of each as soon as it is there.

        The one that others are made of comes before them, also if it does not stay.
        """
        direct = UNQUANTIZED if self._by_llama_cpp else WITHOUT_LLAMA_CPP
        kept = next((one for one in ("f16", "f32", "bf16") if one in self.types), None)
        source = file_name(kept) if kept else SOURCE_FILE
        for file_type in sorted(self.types, key=lambda one: one not in direct):
            name = file_name(file_type)
            if file_type in direct:
                self._convert(name, file_type, progress)
            else:
                if not (self.folder / source).exists():
                    self._convert(source, "f16", progress)
                    yield source, "f16"
                progress(0, 1, f"llama.cpp quantises to {file_type}")
                self._quantize(source, name, file_type)
            yield name, file_type

    @property
    def _by_llama_cpp(self) -> bool:
        return has_llama_cpp() or self.checkout.quantize_bin is not None or self.tokenizer is None

    def _convert(self, name: str, file_type: str, progress: Progress) -> None:
        if self.tokenizer is None:
            progress(0, 1, f"llama.cpp's converter writes {file_type}")
            self.checkout.convert(
                self.model, self.folder / name, file_type, str(self.general["general.name"])
            )
            return
        write_model(
            self.model,
            self.folder / name,
            self.tokenizer,
            file_type=file_type,
            general=self.general,
            progress=lambda done, total: progress(done, total, f"weights in {file_type}"),
        )

    def _quantize(self, source: str, name: str, file_type: str) -> None:
        paths = self.folder / source, self.folder / name
        if self.checkout.quantize_bin:
            self.checkout.quantize(*paths, file_type, self.threads)
        else:
            quantize_file(*paths, file_type, threads=self.threads)
