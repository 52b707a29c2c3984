"""Whether a back end runs an adapter, why not, and what makes it fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.capabilities.features import AdapterFeatures, Feature
from adapterhub.capabilities.matrix import BLENDS_IN_ENGINE, HIGHEST_RANK, MATRIX, Backend, Remedy
from adapterhub.errors import AdapterIncompatibleError

# An adapter with one of these cannot be written as LoRA on linear layers.
_NOT_REWRITTEN = frozenset(
    {
        Feature.EMBEDDINGS,
        Feature.MODULES_TO_SAVE,
        Feature.TRAINABLE_TOKENS,
        Feature.TARGET_PARAMETERS,
        Feature.EXPERTS,
    }
)


@dataclass(frozen=True)
class Conversion:
    """How an adapter is rewritten to fit; its fields are those of `adapterhub.export.LoraForm`.

    Attributes:
        rank: The highest rank, to which others are cut by SVD; None keeps them.
        dora: Whether DoRA is approximated by LoRA.
    """

    rank: int | None = None
    dora: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the rewritten adapter changes the base as this one does."""
        return self.rank is None and not self.dora

    @property
    def approximation(self) -> str:
        """The options of the export commands that approximate it; empty if it is exact."""
        return " ".join(
            [*([f"--rank {self.rank}"] if self.rank else []), *(["--dora svd"] if self.dora else [])]
        )

    @property
    def options(self) -> str:
        """The options of `adapterhub export NAME OUT` that write it."""
        return f"--format peft --plain {self.approximation}".rstrip()


@dataclass(frozen=True)
class Obstacle:
    """One reason why a back end does not run an adapter.

    Attributes:
        reason: The reason.
        remedy: What makes the adapter fit.
        feature: The feature that it does not run; None for the rank.
    """

    reason: str
    remedy: Remedy
    feature: Feature | None = None


@dataclass(frozen=True)
class Capability:
    """Whether a back end runs an adapter.

    Attributes:
        backend: The back end.
        obstacles: Why it does not; empty if it does.
        conversion: What makes it fit; None if it runs as it is, or no rewriting helps.
    """

    backend: Backend
    obstacles: tuple[Obstacle, ...]
    conversion: Conversion | None

    @property
    def runs(self) -> bool:
        """Whether it runs the adapter as it is."""
        return not self.obstacles

    @property
    def reason(self) -> str:
        """Why it does not run; empty if it does."""
        return "; ".join(obstacle.reason for obstacle in self.obstacles)

    @property
    def hint(self) -> str:
        """What makes the adapter fit; empty if it does."""
        if self.runs:
            return ""
        if self.conversion:
            exactly = "is exact" if self.conversion.is_exact else "approximates it and tells the error"
            return f"`adapterhub export NAME OUT {self.conversion.options}` {exactly}."
        if any(obstacle.remedy is Remedy.NONE for obstacle in self.obstacles):
            return "Train plain LoRA on linear layers, or convert it with PEFT."
        return "Merge it into its base with `adapterhub merge NAME OUT`, and serve that."


def capability(adapter: AdapterFeatures, backend: Backend, *, max_lora_rank: int | None = None) -> Capability:
    """Looks an adapter up in the matrix.

    Args:
        adapter: What the adapter has.
        backend: The back end.
        max_lora_rank: The highest rank that it was started for; the highest possible if not given.
    """
    highest = max_lora_rank or HIGHEST_RANK[backend]
    rows = ((feature, MATRIX[feature][backend]) for feature in Feature if feature in adapter.features)
    obstacles = [Obstacle(cell.note, cell.remedy, feature) for feature, cell in rows if not cell.runs]
    if adapter.is_blend and backend not in BLENDS_IN_ENGINE:
        obstacles += _not_written_as_lora(adapter, obstacles)
    is_high = highest is not None and adapter.max_rank > highest
    if is_high:
        obstacles.append(Obstacle(f"its rank is {adapter.max_rank}, above {highest}", Remedy.SVD))
    if not _can_be_registered(adapter):  # so it cannot be exported or merged
        obstacles = [replace(obstacle, remedy=Remedy.NONE) for obstacle in obstacles]
    return Capability(
        backend, tuple(obstacles), _conversion(adapter, obstacles, highest if is_high else None)
    )


def _not_written_as_lora(blend: AdapterFeatures, known: list[Obstacle]) -> list[Obstacle]:
    """What keeps a blend, beside what is known already, from being written as LoRA on linear layers."""
    features = (blend.features & _NOT_REWRITTEN) - {obstacle.feature for obstacle in known}
    reason = "a part changes more than linear layers ({}), and a blend is written as LoRA on these"
    return [Obstacle(reason.format(feature), Remedy.MERGE, feature) for feature in sorted(features)]


def _can_be_registered(adapter: AdapterFeatures) -> bool:
    return all(MATRIX[feature][Backend.IN_PROCESS].runs for feature in adapter.features)


def _conversion(adapter: AdapterFeatures, obstacles: list[Obstacle], rank: int | None) -> Conversion | None:
    convertible = all(one.remedy in (Remedy.PLAIN, Remedy.SVD) for one in obstacles)
    if not obstacles or not convertible or adapter.features & _NOT_REWRITTEN:
        return None
    return Conversion(rank, dora=Feature.DORA in adapter.features)


def capabilities_of(adapter: AdapterFeatures | Path) -> tuple[Capability, ...]:
    """Looks an adapter up for every back end, each with its highest rank.

    Args:
        adapter: What the adapter has, or its folder.

    Raises:
        AdapterInvalidError: The folder's files are damaged.
    """
    features = AdapterFeatures.of_folder(adapter) if isinstance(adapter, Path) else adapter
    return tuple(capability(features, backend) for backend in Backend)


def check_adapter(
    adapter: AdapterFeatures | Path,
    backend: Backend,
    *,
    max_lora_rank: int | None = None,
    name: str = "The adapter",
) -> None:
    """Refuses an adapter that a back end would not load, or would answer with wrongly.

    Args:
        adapter: What the adapter has, or its folder.
        backend: The back end.
        max_lora_rank: The highest rank that it was started for; the highest possible if not given.
        name: The adapter, for the message.

    Raises:
        AdapterIncompatibleError: The back end does not run it; the hint says what makes it fit.
        AdapterInvalidError: The folder's files are damaged.
    """
    features = AdapterFeatures.of_folder(adapter) if isinstance(adapter, Path) else adapter
    found = capability(features, backend, max_lora_rank=max_lora_rank)
    if not found.runs:
        raise AdapterIncompatibleError(f"{name} does not run on {backend}: {found.reason}.", hint=found.hint)
