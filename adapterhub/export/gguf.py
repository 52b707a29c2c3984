"""Exporting an adapter, merged into its base, or a base alone, as GGUF files that are checked before they are there.

    base + adapter -> merged model (on disk, removed at the end) -> a 16-bit file -> its quantised forms -> checks

A file that fails a check fails the export, which then leaves nothing behind.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from adapterhub._files import new_folder, os_errors_as, sha256_file
from adapterhub.base.fingerprint import BaseFingerprint, weight_files
from adapterhub.base.loading import load_tokenizer
from adapterhub.errors import ExportError
from adapterhub.export.adapter_part import AdapterSum
from adapterhub.export.base_name import base_name
from adapterhub.export.disk_space import check_disk_space
from adapterhub.export.free_folder import free_folder
from adapterhub.export.gguf_card import gguf_card
from adapterhub.export.gguf_checks import TokenCheck, check_tokens, file_logits, gguf_bound, nearest_split
from adapterhub.export.gguf_report import REPORT_FILE, GgufExport, GgufFile
from adapterhub.export.gguf_writing import SOURCE_FILE, GgufFilesWriter, Progress, file_name
from adapterhub.export.licence_files import copy_licences
from adapterhub.export.llama_cpp_checkout import LlamaCppCheckout
from adapterhub.export.llama_cpp_file import has_llama_cpp
from adapterhub.export.merge import merge_adapter
from adapterhub.export.model_logits import model_logits
from adapterhub.export.ollama import GgufFiles, write_modelfiles
from adapterhub.export.verification import VerificationTexts, compare_logits
from adapterhub.export.verification_texts import verification_texts
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import Field, attention_window, hyperparameters
from adapterhub.gguf.quantization import UNQUANTIZED, check_quantization
from adapterhub.gguf.tokenizer import (
    GgufTokenizer,
    gguf_tokenizer,
    lacks_split_name,
    read_tokenizer,
    unnamed_split,
)
from adapterhub.registry.cards import PromptProfile
from adapterhub.registry.prompt_files import prompt_profile_of
from adapterhub.requests.prompts import choose_style, conversation, render

_MERGED = ".merged"


def export_gguf(
    base_folder: str | Path,
    adapter_folder: str | Path | Mapping[Path, float] | None,
    out: str | Path,
    *,
    types: Sequence[str] = ("f16",),
    verify: bool = True,
    modelfiles: bool = True,
    modelfile_tools: bool = True,
    pre_tokenizer: str | None = None,
    checkout: LlamaCppCheckout | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> GgufExport:
    """Writes GGUF files of an adapter merged into its base, or of the base alone.

    The checks compare the tokens of 400 texts, and predictions of some 1,300 tokens with those of the adapter on its
    base. Without llama.cpp they load each file in float32.

    Args:
        base_folder: The base in 16 or 32 bits.
        adapter_folder: As for `merge_adapter`; None for the base alone.
        out: The new folder; it must not exist, or be empty.
        types: The files' types: `"f32"`, `"f16"`, `"bf16"`, `"q8_0"`, `"q4_k_m"`, ...
        verify: Check the files.
        modelfiles: Write a Modelfile of Ollama for each file, such as `Modelfile.f16`.
        modelfile_tools: Whether the Modelfiles have tools, where the chat template has them.
        pre_tokenizer: llama.cpp's name of the way to split text, where the tokenizer's own has none. Texts that become
            other tokens are then counted, and do not fail the export.
        checkout: A checkout of llama.cpp, whose converter writes the files, for architectures that are not written
            here; its `llama-quantize` is used where llama-cpp-python is not installed.
        force: Also merge into a base other than the one on the adapter's card, if the shapes fit.
        threads: How many threads llama.cpp computes with; as many as torch if not given.
        progress: Called with how much is done, how much there is, and of what.

    Raises:
        ExportError: `out` is not empty, a type needs llama-cpp-python, llama.cpp cannot express the model or its
            tokenizer, a check failed, or writing did. Then `out` is not created.
        AdapterInvalidError: As for `merge_adapter`.
        AdapterIncompatibleError: As for `merge_adapter`.
        ConfigError: There is no such type, or the base cannot be read.
    """
    out = free_folder(out)
    wanted = list(dict.fromkeys(one.lower() for one in types))
    if not wanted:
        raise ExportError("No type of GGUF file is given.", hint="Give one, such as f16.")
    checkout = checkout or LlamaCppCheckout()
    check_quantization(wanted, llama_cpp=has_llama_cpp() or checkout.quantize_bin is not None)
    adapters = None if adapter_folder is None else AdapterSum.of(adapter_folder)
    threads = threads or _threads()
    job = _Job(
        Path(base_folder),
        adapters,
        wanted,
        verify,
        modelfiles,
        modelfile_tools,
        pre_tokenizer,
        checkout,
        force,
        threads,
    )
    check_disk_space(out, job.largest_bytes)
    what = f"The GGUF files could not be written to {str(out)!r}"
    with os_errors_as(ExportError, what), new_folder(out) as folder:
        return job.write(folder, progress or (lambda done, total, note: None))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


@dataclass(frozen=True)
class _Job:
    base: Path
    adapters: AdapterSum | None
    types: list[str]
    verify: bool
    modelfiles: bool
    modelfile_tools: bool
    pre: str | None
    checkout: LlamaCppCheckout
    force: bool
    threads: int

    @property
    def largest_bytes(self) -> int:
        """What a merged model in 32 bits, a file to quantise and the wanted files take, if the base has 16 bits."""
        weights = sum(file.stat().st_size for file in weight_files(self.base))
        merged = 2 if self.adapters else 0
        source = 0 if set(self.types) & set(UNQUANTIZED) else 1
        return weights * (merged + source + sum(2 if file_type == "f32" else 1 for file_type in self.types))

    def write(self, folder: Path, progress: Progress) -> GgufExport:
        architecture = None if self.checkout.convert_script else Architecture.of_folder(self.base)
        if architecture:
            self._check_expressible(architecture)
        model = self._model(folder, progress)
        texts = self._texts(model)
        tokenizer = self._tokenizer(model, architecture) if architecture else None
        if tokenizer:  # what cannot be expressed is refused before the files are written
            self._write_modelfiles(folder, model, tokenizer)
        files = []
        general = self._general(tokenizer)
        writer = GgufFilesWriter(model, folder, self.types, tokenizer, general, self.checkout, self.threads)
        for name, file_type in writer.write(progress):
            checked = self._checked(folder / name, file_type, model, tokenizer, texts, progress)
            if name != SOURCE_FILE:
                files.append(checked)
        if tokenizer is None:
            self._write_modelfiles(folder, model, read_tokenizer(folder / files[0].file))
        copy_licences(model, folder, follow_links=True)
        for left in (folder / _MERGED, folder / SOURCE_FILE):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        notes = tuple(_notes(architecture, tokenizer, files)) if architecture and tokenizer else ()
        report = self._report(files, notes)
        (folder / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(gguf_card(report, self.base, self.adapters), encoding="utf-8")
        return report

    def _check_expressible(self, architecture: Architecture) -> None:
        """Refuses what llama.cpp cannot express of the base, before all its weights are merged."""
        hyperparameters(architecture)
        tokenizer, vocab_size = load_tokenizer(self.base), architecture.config.vocab_size
        if self.pre is None and lacks_split_name(tokenizer):
            nearest, check = nearest_split(tokenizer, vocab_size)
            raise unnamed_split(
                f"--pre-tokenizer {nearest} takes the nearest, with which {check.different} of {check.texts} texts "
                "become other tokens."
            )
        gguf_tokenizer(tokenizer, vocab_size, pre=self.pre)

    def _model(self, folder: Path, progress: Progress) -> Path:
        """The folder of the merged model, or of the base alone."""
        if self.adapters is None:
            return self.base
        merged = folder / _MERGED
        parts = {part.folder: part.weight for part in self.adapters.parts}
        merge_adapter(
            self.base,
            parts,
            merged,
            dtype="float32",  # 16 bits would round twice
            force=self.force,
            verify=False,  # what is made of it is
            progress=lambda done, total: progress(done, total, "bytes merged"),
        )
        return merged

    def _write_modelfiles(self, folder: Path, model: Path, tokenizer: GgufTokenizer) -> None:
        if not self.modelfiles:
            return
        profile = self._profile
        if tokenizer.leading_space:  # which only the file's own template writes
            profile = profile.model_copy(update={"chat_template": tokenizer.chat_template})
        write_modelfiles(
            folder,
            {file_type: GgufFiles(file_name(file_type)) for file_type in self.types},
            model,
            profile=profile,
            add_bos=tokenizer.add_bos,
            tools=self.modelfile_tools,
        )

    def _texts(self, model: Path) -> VerificationTexts | None:
        if not self.verify:
            return None
        main = self.adapters.main if self.adapters else None
        examples = main.card.routing.examples if main and main.card else ()
        return verification_texts(model, self._profile, examples=examples)

    @cached_property
    def _profile(self) -> PromptProfile:
        if self.adapters is None:
            return PromptProfile()
        return prompt_profile_of(self.adapters.main.folder, self.base, force=self.force)

    def _tokenizer(self, model: Path, architecture: Architecture) -> GgufTokenizer:
        tokenizer = load_tokenizer(model)
        style = choose_style(tokenizer.chat_template)
        prompts = [render(conversation("Hello"), style, tokenizer)] if style.format == "chat" else []
        return gguf_tokenizer(tokenizer, architecture.config.vocab_size, pre=self.pre, prompts=prompts)

    def _general(self, tokenizer: GgufTokenizer | None) -> dict[str, Field]:
        """What the file says of itself, without paths of this machine."""
        name = f"{self._base_name} {self.adapters.ref}" if self.adapters else self._base_name
        if tokenizer and tokenizer.strips_after_control and not re.search(r"phi-?3", name, re.IGNORECASE):
            name = f"Phi-3 {name}"  # llama.cpp drops whitespace after control tokens by the name
        fields: dict[str, Field] = {"general.name": name}
        if self.adapters:
            fields |= {
                "general.base_model.count": 1,
                "general.base_model.0.name": self._base_name,
                "general.finetune": self.adapters.ref,
                "adapterhub.adapter_digest": self.adapters.digest,
            }
        return {**fields, "adapterhub.base_digest": self._fingerprint.digest}

    @cached_property
    def _base_name(self) -> str:
        card = self.adapters.main.card if self.adapters else None
        return base_name(card, self.base, self._fingerprint)

    @cached_property
    def _fingerprint(self) -> BaseFingerprint:
        return BaseFingerprint.of(self.base)

    def _checked(
        self,
        file: Path,
        file_type: str,
        model: Path,
        tokenizer: GgufTokenizer | None,
        texts: VerificationTexts | None,
        progress: Progress,
    ) -> GgufFile:
        tokens = verification = None
        if texts:
            progress(0, texts.tokens, f"checking {file_type}")
            tokens = check_tokens(file, tokenizer or read_tokenizer(file), load_tokenizer(model))
            self._refuse_other_tokens(tokens)
            request = self.adapters.request if self.adapters else None
            with (
                closing(model_logits(self.base, texts.sequences, adapter=request)) as reference,
                closing(file_logits(file, model, texts.sequences, threads=self.threads)) as exported,
            ):
                verification = compare_logits(
                    texts,
                    reference,
                    exported,
                    progress=lambda done, total: progress(done, total, f"predictions of {file_type} checked"),
                )
            gguf_bound(file_type).check(verification)
        return GgufFile(file.name, file_type, file.stat().st_size, sha256_file(file), tokens, verification)

    def _refuse_other_tokens(self, tokens: TokenCheck) -> None:
        if tokens.different and self.pre is None:
            raise ExportError(
                f"{tokens.different} of {tokens.texts} texts become other tokens in llama.cpp than in transformers, "
                f"such as {tokens.example!r:.80}.",
                hint="Serve the adapter with adapterhub, vLLM or transformers; with --pre-tokenizer NAME the file is "
                "written all the same.",
            )

    def _report(self, files: Sequence[GgufFile], notes: tuple[str, ...]) -> GgufExport:
        by = "llama.cpp" if has_llama_cpp() else "transformers"
        return GgufExport(
            base=self._base_name,
            base_digest=self._fingerprint.digest,
            adapter=self.adapters.ref if self.adapters else None,
            adapter_digest=self.adapters.digest if self.adapters else None,
            files=tuple(files),
            checked_with=by if self.verify else None,
            notes=notes,
        )


def _notes(architecture: Architecture, tokenizer: GgufTokenizer, files: Sequence[GgufFile]) -> Iterator[str]:
    different = next((file.tokens for file in files if file.tokens and file.tokens.different), None)
    if different:
        yield (
            f"{different.different} of {different.texts} texts become other tokens in llama.cpp than in transformers: "
            f"its way to split text, {tokenizer.pre!r}, is another."
        )
    if tokenizer.leading_space:
        yield (
            "llama.cpp puts no space before a text, as the tokenizer does: begin a prompt without control tokens "
            "with a space. The chat template in the file does so."
        )
    if window := attention_window(architecture):
        yield f"The model attends to the last {window:,} tokens, llama.cpp to all: longer texts may differ."
