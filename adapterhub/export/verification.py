"""How far an exported model's predictions are from those of its reference, and how far they may be.

Both models read the same tokens. The figures are those of llama.cpp's `llama-perplexity --kl-divergence`. Where the
logits come from does not matter: from a folder of transformers' (`model_logits`), or from llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import TYPE_CHECKING

from adapterhub.errors import ExportError, InvalidRequestError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenSequence:
    """What both models read.

    Attributes:
        token_ids: The tokens.
        start: The first position whose logits are compared, from 0; those before it are only read.
    """

    token_ids: tuple[int, ...]
    start: int = 0

    @property
    def compared(self) -> int:
        """Number of positions that are compared."""
        return len(self.token_ids) - self.start


@dataclass(frozen=True)
class VerificationTexts:
    """What both models read, as tokens.

    Attributes:
        description: What the texts are, in a few words that may be published.
        sequences: The tokens of each text.
    """

    description: str
    sequences: tuple[TokenSequence, ...]

    @property
    def tokens(self) -> int:
        """Number of positions that are compared."""
        return sum(sequence.compared for sequence in self.sequences)


@dataclass(frozen=True)
class Verification:
    """How far an exported model's predictions are from its reference's.

    Attributes:
        texts: What both read.
        tokens: Number of predictions.
        max_logit_difference: The largest difference of a logit.
        kl_divergence: Mean KL divergence from the reference's predictions, nats.
        top1_agreement: Share of predictions, 0 to 1, with the same most probable token.
        perplexity: Perplexity of the next tokens under the exported model.
        reference_perplexity: The same under the reference.
    """

    texts: str
    tokens: int
    max_logit_difference: float
    kl_divergence: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float

    @property
    def perplexity_change(self) -> float:
        """Relative change of the perplexity, 0 for none."""
        return self.perplexity / self.reference_perplexity - 1

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens of {self.texts}: KL divergence {self.kl_divergence:.1e} nats; perplexity "
            f"{self.perplexity:.4f}, the reference's {self.reference_perplexity:.4f} ({self.perplexity_change:+.2%}); "
            f"{self.top1_agreement:.1%} of the most probable tokens are the same; the largest difference of a logit "
            f"is {self.max_logit_difference:.2g}"
        )


@dataclass(frozen=True)
class VerificationBound:
    """How far an export may be from its reference.

    Attributes:
        kl_divergence: The largest mean KL divergence, nats.
        perplexity_change: The largest relative change of the perplexity, either way.
    """

    kl_divergence: float
    perplexity_change: float

    def check(self, found: Verification) -> None:
        """Raises `ExportError` if an export is further from its reference than this."""
        within = (
            found.kl_divergence <= self.kl_divergence
            and abs(found.perplexity_change) <= self.perplexity_change  # also false where it is not a number
        )
        if not within:
            raise ExportError(
                f"The export does not predict as its reference does, on {found}. Allowed is a KL divergence "
                f"of {self.kl_divergence:g} nats and a change of the perplexity by {self.perplexity_change:g}.",
                hint="Choose more bits, or another form; without verification it is kept as it is.",
            )


MERGE_BOUNDS: Mapping[str, VerificationBound] = {
    "F32": VerificationBound(kl_divergence=1e-5, perplexity_change=5e-4),
    "F16": VerificationBound(kl_divergence=1e-4, perplexity_change=5e-3),
    "BF16": VerificationBound(kl_divergence=1e-3, perplexity_change=5e-3),
}
"""Bounds of a merge by the dtype of its weights, in safetensors' notation: what rounding them once may do."""


def compare_logits(
    texts: VerificationTexts,
    reference: Iterable[torch.Tensor],
    exported: Iterable[torch.Tensor],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compares two models' logits of the same tokens, one sequence at a time.

    Args:
        texts: The tokens.
        reference: For each sequence the reference's logits from position `start` on, shape (compared, vocabulary).
        exported: The same of the exported model.
        progress: Called with the number of predictions compared so far and in total.

    Raises:
        InvalidRequestError: There is nothing to compare.
        ExportError: The two vocabularies differ in size, or logits are not numbers.
    """
    return compare_pairs(texts, (reference, exported), ((0, 1),), progress=progress)[0]


def compare_pairs(
    texts: VerificationTexts,
    models: Sequence[Iterable[torch.Tensor]],
    pairs: Sequence[tuple[int, int]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verification]:
    """Compares several models' logits of the same tokens, each computed once; see `compare_logits`.

    Args:
        texts: The tokens.
        models: For each model its logits of each sequence.
        pairs: The indices in `models` of a reference and of what is compared with it.
        progress: As for `compare_logits`.

    Raises:
        InvalidRequestError: As for `compare_logits`.
        ExportError: As for `compare_logits`.
    """
    if not texts.tokens:
        raise InvalidRequestError("There are no tokens to compare the models by.", hint="Give longer texts.")
    sums: list[list[_Sums]] = [[] for _ in pairs]
    done = 0
    for sequence, *logits in zip(texts.sequences, *models, strict=True):
        for (reference, exported), found in zip(pairs, sums, strict=True):
            found.append(_compare(sequence, logits[reference], logits[exported]))
        done += sequence.compared
        if progress:
            progress(done, texts.tokens)
    return [_verification(texts, found) for found in sums]


@dataclass(frozen=True)
class _Sums:
    targets: int
    same: int
    max_logit_difference: float
    divergence: float
    loss: float
    reference_loss: float


def _verification(texts: VerificationTexts, sums: Sequence[_Sums]) -> Verification:
    targets = max(1, sum(one.targets for one in sums))
    return Verification(
        texts=texts.description,
        tokens=texts.tokens,
        max_logit_difference=max(one.max_logit_difference for one in sums),
        kl_divergence=max(
            0.0, sum(one.divergence for one in sums) / texts.tokens
        ),  # below 0 by rounding alone
        top1_agreement=sum(one.same for one in sums) / texts.tokens,
        perplexity=_perplexity(sum(one.loss for one in sums) / targets),
        reference_perplexity=_perplexity(sum(one.reference_loss for one in sums) / targets),
    )


def _compare(sequence: TokenSequence, reference: torch.Tensor, exported: torch.Tensor) -> _Sums:
    if reference.shape != exported.shape:
        raise ExportError(
            f"The export gives logits of shape {tuple(exported.shape)}, its reference {tuple(reference.shape)}."
        )
    if reference.isnan().any() or exported.isnan().any():
        raise ExportError(
            "The predictions of the export or of its reference are not numbers.",
            hint="The adapter's weights may have diverged in training.",
        )
    difference = float((reference.float() - exported.float()).abs().nan_to_num(0.0, posinf=inf).max())
    p, q = reference.float().log_softmax(-1), exported.float().log_softmax(-1)
    targets = list(sequence.token_ids[sequence.start + 1 :])
    rows = range(len(targets))
    return _Sums(
        targets=len(targets),
        same=int((p.argmax(-1) == q.argmax(-1)).sum()),
        max_logit_difference=difference,
        # What has no probability in the reference has none to lose.
        divergence=float((p.exp() * (p - q)).where(~p.isneginf(), 0.0).double().sum()),
        loss=-float(q[rows, targets].double().sum()),
        reference_loss=-float(p[rows, targets].double().sum()),
    )


def _perplexity(loss: float) -> float:
    try:
        return exp(loss)
    except OverflowError:  # the tokens have no probability at all
        return inf
