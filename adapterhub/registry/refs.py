"""What the aliases of an adapter mean: one version, or several that share its requests; and its shadow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from adapterhub.errors import AdapterExistsError, InvalidRequestError, describe_validation

MAX_VERSIONS = 16
"""How many versions may share the requests of an alias."""
MAX_REFS_BYTES = 2**20
"""The maximum size of `refs.json`."""
Weight: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Shadow(BaseModel):
    """The version that gets copies of an alias' requests, whose answers nobody sees."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: PositiveInt
    """The version."""
    percent: float = Field(gt=0, le=100, allow_inf_nan=False)
    """Share of the requests that are copied, in percent."""


class Alias(BaseModel):
    """What an alias means: the versions that answer its requests, and its shadow.

    Where one version answers and there is no shadow, `refs.json` has its number alone. Otherwise it has an object,
    which releases that know no splits refuse to read: none of them sends a share to the wrong version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weights: dict[PositiveInt, Weight] = Field(min_length=1, max_length=MAX_VERSIONS)
    """Version -> its weight; the versions share the requests in this ratio."""
    shadow: Shadow | None = None
    """What gets copies of its requests."""

    @classmethod
    def of(cls, target: int | Mapping[int, int], shadow: Shadow | None = None) -> Self:
        """An alias.

        Args:
            target: The version that answers, or version -> weight.
            shadow: Its shadow; none if the version answers itself.

        Raises:
            InvalidRequestError: There are no versions or too many, or a weight is no whole number from 1 to 1,000,000.
        """
        weights = dict(target) if isinstance(target, Mapping) else {target: 1}
        try:
            return cls(weights=weights, shadow=shadow if shadow and shadow.version not in weights else None)
        except ValidationError as error:
            raise InvalidRequestError(
                f"The weights of the versions are not valid: {describe_validation(error)}.",
                hint="Give each version a whole number, such as {3: 90, 4: 10}.",
            ) from error

    def shadowed(self, version: int | None, percent: float) -> Alias:
        """The same with another shadow.

        Args:
            version: The version that gets copies; None for no shadow.
            percent: Share of the requests that are copied.

        Raises:
            InvalidRequestError: The version answers requests itself, or `percent` is out of range.
        """
        if version in self.weights:
            raise InvalidRequestError(
                f"Version {version} answers requests for the alias itself.",
                hint="A shadow is another version.",
            )
        try:
            shadow = None if version is None else Shadow(version=version, percent=percent)
        except ValidationError as error:
            raise InvalidRequestError(f"The shadow is not valid: {describe_validation(error)}.") from error
        return self.model_copy(update={"shadow": shadow})

    def checked(self) -> Alias:
        """The same.

        Raises:
            InvalidRequestError: Its shadow answers requests itself.
        """
        return self if self.shadow is None else self.shadowed(self.shadow.version, self.shadow.percent)

    @property
    def version(self) -> int:
        """The version with the largest weight, of equal ones the oldest: what a reference to the alias resolves to."""
        return min(self.weights, key=lambda version: (-self.weights[version], version))

    @property
    def is_split(self) -> bool:
        """Whether several versions share its requests."""
        return len(self.weights) > 1

    @property
    def is_shared(self) -> bool:
        """Whether other versions than `version` get requests or copies of them."""
        return self.is_split or self.shadow is not None

    @property
    def versions(self) -> frozenset[int]:
        """The versions that it needs, with its shadow's."""
        return frozenset(self.weights) | ({self.shadow.version} if self.shadow else frozenset())

    @property
    def shares(self) -> dict[int, float]:
        """Version -> its share of the requests, from 0 to 1."""
        total = sum(self.weights.values())
        return {version: weight / total for version, weight in sorted(self.weights.items())}

    def without(self, versions: Collection[int]) -> Alias | None:
        """The same after some versions were removed; None if none is left that answers."""
        weights = {version: weight for version, weight in self.weights.items() if version not in versions}
        shadow = self.shadow if self.shadow and self.shadow.version not in versions else None
        return Alias(weights=weights, shadow=shadow) if weights else None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, stored: Any) -> Any:
        return {"weights": {stored: 1}} if isinstance(stored, int) else stored

    @model_serializer(mode="wrap")
    def _to_number(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(self) if self.is_shared else self.version


class Refs(BaseModel):
    """The content of `refs.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    aliases: dict[str, Alias] = {}
    """Alias -> what it means."""
    next_version: PositiveInt = 1
    """The next version gets at least this number, so that the number of a removed version is not reused."""
    removed: tuple[PositiveInt, ...] = ()
    """In a store: removed versions, of which objects may be left."""

    def aliases_of(self, version: int) -> tuple[str, ...]:
        """The aliases that resolve to a version."""
        return tuple(sorted(name for name, alias in self.aliases.items() if alias.version == version))

    def check_unneeded(self, name: str, versions: Collection[int]) -> None:
        """Returns if no alias points to one of some versions, gives it requests or copies of them.

        Args:
            name: The adapter's.
            versions: Those that are to be removed.

        Raises:
            AdapterExistsError: One does.
        """
        for alias, meaning in sorted(self.aliases.items()):
            for version in sorted(meaning.versions.intersection(versions)):
                raise AdapterExistsError(
                    f"The alias {alias!r} points to {name}@{version}.",
                    hint="Move or remove the alias first, or remove both with force.",
                )

    def missing(self, versions: Collection[int]) -> list[tuple[str, int]]:
        """The aliases that need a version that does not exist, with its number.

        Args:
            versions: Those that exist.
        """
        needed = ((name, alias.versions.difference(versions)) for name, alias in self.aliases.items())
        return [(name, version) for name, absent in needed for version in sorted(absent)]

    def with_alias(self, name: str, alias: Alias | None) -> Refs:
        """The same with an alias set, or removed by None."""
        others = {other: meaning for other, meaning in self.aliases.items() if other != name}
        return self.model_copy(update={"aliases": others if alias is None else {**others, name: alias}})

    def without(self, versions: tuple[int, ...]) -> Refs:
        """The same after some versions were removed."""
        remaining = {name: alias.without(versions) for name, alias in self.aliases.items()}
        return Refs(
            aliases={name: alias for name, alias in remaining.items() if alias},
            next_version=max(self.next_version, *(version + 1 for version in versions)),
            removed=self.removed,
        )

    def to_json(self) -> bytes:
        """The content of `refs.json`.

        Raises:
            InvalidRequestError: It is larger than `MAX_REFS_BYTES`, so that nobody could read it again.
        """
        content = self.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"
        if len(content) > MAX_REFS_BYTES:
            raise InvalidRequestError(
                f"The aliases of the adapter would take more than {MAX_REFS_BYTES:,} bytes.",
                hint="Remove aliases that nobody needs, or go on under another name.",
            )
        return content
