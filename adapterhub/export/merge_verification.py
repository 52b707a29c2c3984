"""Verifying a merge, before it is kept, against the adapter on the weights that it was merged into.

At equal precision only rounding differs. For an adapter that was trained on a base in 4 bits there is a second figure:
how far a merge into the base's own weights is from the adapter as it was trained, which `exact` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.errors import ConfigError
from adapterhub.export.model_logits import model_logits
from adapterhub.export.verification import (
    MERGE_BOUNDS,
    Verification,
    VerificationBound,
    VerificationTexts,
    compare_pairs,
)
from adapterhub.export.verification_texts import verification_texts
from adapterhub.registry.prompt_files import prompt_profile_of

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from adapterhub.export.adapter_part import AdapterSum
    from adapterhub.export.merge_plan import MergePlan
    from adapterhub.export.round_trip import RoundTrip


@dataclass(frozen=True)
class MergeVerification:
    """The figures of a merge.

    Attributes:
        merged: The merged model against the adapter on the weights that it was merged into.
        without_exact: For an adapter that was trained on a base in 4 bits: a merge into the base's own weights against
            the adapter as it was trained.
    """

    merged: Verification
    without_exact: Verification | None = None

    def __str__(self) -> str:
        told = f"Compared with the adapter on the weights that it was merged into, on {self.merged}."
        if self.without_exact is None:
            return told
        return (
            f"{told}\n\nThe adapter was trained on a base in 4 bits. A merge into the base's own weights, compared "
            f"with the adapter on the base in 4 bits, on {self.without_exact}."
        )


@dataclass(frozen=True)
class MergeVerifier:
    """Verifies a merge. It computes in float32 on the CPU; 16-bit weights stay on disk, a 4-bit base is loaded.

    Attributes:
        heldout: JSON Lines of conversations to compare on; the card's example requests and the shipped texts if not
            given.
        progress: Called with the number of predictions compared so far and in total.
    """

    heldout: str | Path | None = None
    progress: Callable[[int, int], None] | None = None

    def texts(self, base: Path, adapters: AdapterSum, *, force: bool = False) -> VerificationTexts:
        """What the models read.

        Args:
            base: The base's folder.
            adapters: What is merged; the main part's prompt profile and examples are used.
            force: As for `merge_adapter`.

        Raises:
            DatasetError: The held-out data cannot be read.
            ConfigError: The base's tokenizer cannot be loaded.
        """
        main = adapters.main
        profile = prompt_profile_of(main.folder, base, force=force)
        examples = main.card.routing.examples if main.card else ()
        try:
            return verification_texts(base, profile, examples=examples, heldout=self.heldout)
        except ConfigError as error:
            raise ConfigError(
                f"The merge cannot be verified: {error.message}",
                hint="Repair it, or merge without verification: --no-verify, verify=False.",
            ) from error

    def verify(self, merged: Path, plan: MergePlan, texts: VerificationTexts) -> MergeVerification:
        """Compares a merged model with what it was made of.

        Args:
            merged: Its folder.
            plan: How it was made.
            texts: What both read.

        Raises:
            ExportError: It is further from its reference than rounding its weights explains.
            ConfigError: A model cannot be loaded.
        """
        adapter = plan.adapters.request
        own = model_logits(plan.base, texts.sequences, adapter=adapter)
        exported = model_logits(merged, texts.sequences)
        round_trip = plan.round_trip or plan.adapters.round_trip
        if round_trip is None:
            models, pairs = [own, exported], [(0, 1)]
        else:
            trained = model_logits(
                plan.base, texts.sequences, adapter=adapter, quantization=_quantization(round_trip)
            )
            models = [own, exported, trained]
            pairs = [(2, 1), (2, 0)] if plan.round_trip else [(0, 1), (2, 1)]
        found = compare_pairs(texts, models, pairs, progress=self.progress)
        merge_bound(plan.dtypes).check(found[0])
        return MergeVerification(*found)


def merge_bound(dtypes: Sequence[str]) -> VerificationBound:
    """The bound of a merge whose weights have some dtypes, in safetensors' notation: that of the coarsest."""
    return max((MERGE_BOUNDS[dtype] for dtype in dtypes), key=lambda bound: bound.kl_divergence)


def _quantization(round_trip: RoundTrip) -> BitsAndBytesConfig:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=round_trip.quant_type,
        bnb_4bit_use_double_quant=round_trip.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
