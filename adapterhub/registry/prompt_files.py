"""The prompt profile of an adapter that comes with tokenizer files of its own, as most trainers save them.

What differs from the base goes onto the card: the chat template, and the end token as a stop. Tokens are never added to
the base, so an adapter that needs one which the base lacks is refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.registry.cards import MAX_STOPS, AdapterCard, PromptProfile

_MAX_TEMPLATE = 2**18


def read_prompt_profile(
    adapter: Path, base: Path | None, *, force: bool = False
) -> tuple[PromptProfile, tuple[str, ...]]:
    """Reads what an adapter's tokenizer files change about prompts and the end of answers.

    Args:
        adapter: The adapter's folder, with or without tokenizer files.
        base: The base's folder; without it the adapter's template and end token are taken as they are.
        force: Warn of what is refused otherwise.

    Returns:
        The profile, and warnings for the card.

    Raises:
        AdapterInvalidError: A tokenizer file is damaged.
        AdapterIncompatibleError: The adapter's tokenizer is another one than the base's, or its template or end token
            needs a token that the base lacks.
    """
    own, bases = TokenizerFiles(adapter), TokenizerFiles(base) if base else None
    try:
        template, stop = (
            _own_template(own, bases),
            tuple(sorted(own.end_tokens - (bases.end_tokens if bases and own.end_tokens else set()))),
        )
        json.dumps([template, stop], ensure_ascii=False).encode()  # no lone surrogates
        if len(stop) > MAX_STOPS:
            raise ValueError(f"they name {len(stop)} further end tokens; at most {MAX_STOPS} are taken")
        refused, warnings = _token_problems(own, bases, template or "", stop) if bases else ((), ())
    except ValueError as error:
        raise AdapterInvalidError(
            f"The adapter's tokenizer files are damaged: {error}.",
            hint="Copy them again, or leave them out: the base's are used then.",
        ) from error
    if refused and not force:
        raise AdapterIncompatibleError(
            f"The adapter does not fit the base's tokenizer: {refused[0]}.",
            hint="Give the base that it was trained on; force registers it with a warning.",
        )
    told = ("its chat template differs from the base's: its own is used",) if template and bases else ()
    return PromptProfile(chat_template=template, stop=stop), (*refused, *warnings, *told, *_unread(own))


def prompt_profile_of(adapter: Path, base: Path, *, force: bool = False) -> PromptProfile:
    """The prompt profile on an adapter's card, or that of its tokenizer files if it has none; raises as they do."""
    card = AdapterCard.of_folder(adapter)
    if card and card.base.fingerprint:  # its tokenizer was compared with a base then
        return card.prompt
    own, _ = read_prompt_profile(adapter, base, force=force)
    return card.prompt if card else own


def _own_template(own: TokenizerFiles, base: TokenizerFiles | None) -> str | None:
    """The adapter's template, if it writes other prompts than the base's."""
    template = own.chat_templates.get("default", "").rstrip("\n")
    if len(template) > _MAX_TEMPLATE:
        raise ValueError(
            f"the chat template has {len(template):,} characters; at most {_MAX_TEMPLATE:,} are read"
        )
    known = base.special_tokens if base else {}
    tokens = {
        name: token
        for name, token in own.special_tokens.items()
        if name in template and known.get(name) != token
    }
    if base and not tokens and template == base.chat_templates.get("default", "").rstrip("\n"):
        return None
    # The base's tokenizer renders it, whose variables have other values.
    settings = "".join(
        f"{{%- set {name} = {json.dumps(token, ensure_ascii=False)} -%}}" for name, token in tokens.items()
    )
    return settings + template if template else None


def _token_problems(
    own: TokenizerFiles, base: TokenizerFiles, template: str, stop: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is refused about the adapter's tokens, and what is only told."""
    if not own.vocabulary or not (known := base.vocabulary):
        return (), ()
    differing = [
        token
        for token, token_id in own.vocabulary.items()
        if known.get(token, token_id) != token_id or (token not in known and token not in own.added_tokens)
    ]
    lacking = [token for token in own.added_tokens if token not in known]
    needed = [token for token in lacking if token in template or token in stop]
    unused = [token for token in lacking if token not in needed]
    refused = (
        *(
            [f"{len(differing)} of its tokens are others there, such as {differing[0]!r}"]
            if differing
            else []
        ),
        *(
            [f"its prompts or the end of its answers need {_listed(needed)}, which the base lacks"]
            if needed
            else []
        ),
    )
    return refused, (f"the base lacks its {_listed(unused)}: read as ordinary text",) if unused else ()


def _unread(own: TokenizerFiles) -> tuple[str, ...]:
    more = sorted(own.chat_templates.keys() - {"default"})
    return (f"its chat template {more[0]!r} is not used, only the default one",) if more else ()


def _listed(tokens: list[str]) -> str:
    named = ", ".join(repr(token[:100]) for token in tokens[:3])
    more = f" and {len(tokens) - 3} more" if len(tokens) > 3 else ""
    return f"token{'s' if len(tokens) > 1 else ''} {named}{more}"
