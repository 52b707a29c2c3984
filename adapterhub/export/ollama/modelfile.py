"""Modelfiles: how Ollama runs a GGUF file, https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub._files import os_errors_as, write_atomic
from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.engine.generation_config import default_sampling_params
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import ConfigError, ExportError, InvalidRequestError
from adapterhub.export.ollama.deriving import OllamaTemplate, derive_template
from adapterhub.export.ollama.go_template import go_json
from adapterhub.export.ollama.source import PromptSource
from adapterhub.export.ollama.verifying import verify_template
from adapterhub.registry.cards import PromptProfile
from adapterhub.requests.prompts import choose_style

DEFAULT_NUM_CTX = 4096
"""The tokens of context that Ollama keeps memory for, where the model has as many."""
_NOT_OLLAMAS = (
    "suppress_tokens",
    "bad_words_ids",
    "bad_words",
    "stop_token_ids",
    "min_tokens",
    "logit_bias",
)
_COUNT_THE_PROMPT = ("frequency_penalty", "presence_penalty")


@dataclass(frozen=True)
class GgufFiles:
    """The files of one artefact, which stand beside its Modelfile.

    Attributes:
        model: The GGUF file of a model.
        adapter: The GGUF file of an adapter on it.
    """

    model: str
    adapter: str | None = None


def write_modelfiles(
    out: Path,
    artefacts: Mapping[str, GgufFiles],
    model_folder: Path,
    *,
    profile: PromptProfile | None = None,
    add_bos: bool = False,
    num_ctx: int | None = None,
    tools: bool = True,
) -> list[Path]:
    """Writes a Modelfile for each artefact: `Modelfile.f16`, `Modelfile.q4_k_m` and so on.

    The template is derived from the chat template, and both are compared on conversations.

    Args:
        out: The folder of the GGUF files, which need not be there yet.
        artefacts: The end of the Modelfile's name, such as `f16` -> the names of the files.
        model_folder: The model's folder: configuration, tokenizer files, chat template and generation config.
        profile: The adapter's prompt profile: system prompt, stops, sampling defaults and template.
        add_bos: Whether llama.cpp begins prompts with the file's beginning-of-sequence token.
        num_ctx: Ollama's context in tokens; the model's own, at most 4,096, if not given.
        tools: Whether to include tools, where the chat template has them.

    Returns:
        The files.

    Raises:
        ExportError: The chat template or another setting cannot be expressed, or writing failed.
        ConfigError: A file of the model is damaged.
    """
    settings = _settings(model_folder, profile or PromptProfile(), add_bos, num_ctx, tools)
    texts = {out / f"Modelfile.{name}": _modelfile(files, settings) for name, files in artefacts.items()}
    for path, text in texts.items():
        with os_errors_as(ExportError, f"{path.name} cannot be written"):
            write_atomic(path, text.encode())
    return list(texts)


@dataclass(frozen=True)
class _Settings:
    """All of a Modelfile but the files.

    Attributes:
        template: The template, verified.
        compared: The number of conversations that it was verified with.
        system: The system prompt.
        stop: Where answers end.
        parameters: Other parameters.
        notes: What Ollama does otherwise.
    """

    template: OllamaTemplate
    compared: int
    system: str | None
    stop: tuple[str, ...]
    parameters: Mapping[str, float]
    notes: tuple[str, ...]


def _settings(
    model_folder: Path, profile: PromptProfile, add_bos: bool, num_ctx: int | None, tools: bool
) -> _Settings:
    files = TokenizerFiles(model_folder)
    try:
        special = files.special_tokens
        style = choose_style(files.chat_templates, profile.format, profile.chat_template)
        ends, generation = files.end_tokens, files.generation_config
        vocabulary = files.vocabulary
    except ValueError as error:
        raise ConfigError(
            f"A file of the model is damaged: {error}.", hint="Download or export the model again."
        ) from error
    source = PromptSource(style, special, special.get("bos_token", "") if add_bos else "")
    template = derive_template(source, tools=tools)
    compared = verify_template(source, template)
    if profile.system and "system" not in template.roles:
        raise ExportError(
            "The adapter has a system prompt, but the chat template takes no system message.",
            hint="Remove the card's prompt.system, or give it another prompt.chat_template.",
        )
    end = template.end_of_answer.strip()
    stops = dict.fromkeys([*sorted(ends), *([end] if end in vocabulary else []), *style.stop, *profile.stop])
    sampling = _sampling(generation, profile)
    return _Settings(
        template,
        compared,
        profile.system,
        tuple(dict.fromkeys([*stops, *sampling.stop])),
        {"num_ctx": num_ctx or _context(model_folder), **_parameters(sampling)},
        tuple(_notes(source, template, sampling)),
    )


def _modelfile(files: GgufFiles, settings: _Settings) -> str:
    lines = [
        "# How Ollama runs this model: ollama create NAME -f THIS-FILE",
        f"# TEMPLATE gives the prompts of the model's chat template ({settings.compared} conversations compared).",
        *(f"# {note}" for note in settings.notes),
        *([f"# {files.model} is a GGUF file of the adapter's base; put it here."] if files.adapter else []),
        f"FROM ./{files.model}",
        *([f"ADAPTER ./{files.adapter}"] if files.adapter else []),
        f"TEMPLATE {quoted(settings.template.text)}",
        *([f"SYSTEM {quoted(settings.system)}"] if settings.system else []),
        *(f"PARAMETER stop {quoted(stop)}" for stop in settings.stop),
        *(f"PARAMETER {name} {go_json(value)}" for name, value in settings.parameters.items()),
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """The text in quotes, as a Modelfile holds it: it knows no escapes.

    Raises:
        ExportError: The text has characters that Ollama drops, or what it reads as the end.
    """
    dropped = sorted({sign for sign in text if sign not in "\n\r\t" and not sign.isprintable()})
    if dropped:
        raise ExportError(
            f"A Modelfile cannot hold the character U+{ord(dropped[0]):04X}, which Ollama drops.",
            hint="Remove it from the system prompt or the stop strings.",
        )
    if any('"""' + space in text for space in " \t\r\n"):
        raise ExportError(
            "A Modelfile cannot hold three quotes before a space: Ollama reads them as the end of the text.",
            hint="Write other quotes in the system prompt.",
        )
    quote = '"""' if '"' in text or "\n" in text else '"'
    return f"{quote}{text}{quote}"


def _context(model_folder: Path) -> int:
    with os_errors_as(ConfigError, "The model's config.json cannot be read"):
        config = json.loads((model_folder / "config.json").read_bytes())
    known = {**(config.get("text_config") or {}), **config}
    longest = known.get("max_position_embeddings") or known.get("n_positions") or DEFAULT_NUM_CTX
    return int(min(longest, DEFAULT_NUM_CTX))


def _sampling(generation: Mapping[str, Any], profile: PromptProfile) -> SamplingParams:
    try:
        return SamplingParams.of(default_sampling_params(generation), profile.generation)
    except InvalidRequestError as error:
        raise ExportError(f"The card's generation settings are not valid. {error.message}") from error


def _parameters(sampling: SamplingParams) -> dict[str, float]:
    """Ollama's names; all are written, because Ollama's own defaults sample."""
    parameters: dict[str, float] = {
        "temperature": sampling.temperature,
        "top_k": max(sampling.top_k, 0),
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
    }
    if sampling.repetition_penalty != 1:
        parameters["repeat_last_n"] = -1  # all tokens, as in transformers
    optional = {"num_predict": sampling.max_tokens, "seed": sampling.seed}
    return parameters | {name: value for name, value in optional.items() if value is not None}


def _notes(source: PromptSource, template: OllamaTemplate, sampling: SamplingParams) -> Iterator[str]:
    if "system" not in template.roles:
        yield "The chat template takes no system message, so TEMPLATE leaves them out."
    if source.strips_contents():
        yield "The chat template strips the contents of messages; Ollama cannot."
    if source.lacks_added:
        yield "llama.cpp begins prompts with the BOS token, and the chat template alone does not."
    for name in _NOT_OLLAMAS:
        if getattr(sampling, name):
            yield f"Ollama has no {name}, which the model's generation settings have."
    for name in _COUNT_THE_PROMPT:
        if getattr(sampling, name):
            yield f"Ollama's {name} counts the tokens of the prompt too, so it is not written."
