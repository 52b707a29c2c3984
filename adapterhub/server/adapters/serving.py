"""Adapters in and out of serving while the server runs, as vLLM's and SGLang's `load_lora_adapter` do it.

The registry is the truth: loading stores the adapter as a version of its name, and unloading disables the name, so
that both survive a restart. A request that runs keeps the version that it started with.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from adapterhub.errors import AdapterHubError, AdapterNotFoundError, InvalidRequestError
from adapterhub.hub import AdapterHub
from adapterhub.lora import StoredLoraRequest
from adapterhub.registry import AdapterCard, CardFields
from adapterhub.registry.references import check_name


class AdapterServing:
    """Loads and unloads adapters by name, one at a time. Any thread may call it.

    Args:
        hub: Serves them.
        base_model: The name of the base, which no adapter may have: requests for it would be answered by the base.
    """

    def __init__(self, hub: AdapterHub, base_model: str) -> None:
        self._hub = hub
        self._base_names = {base_model, hub.engine.base_name}
        self._registry = hub.registry
        self._lock = threading.Lock()

    def load(
        self, name: str, folder: Path, *, load_inplace: bool = False, pinned: bool = False
    ) -> AdapterCard:
        """Registers an adapter under a name, unless the name has these files already, and loads it.

        Args:
            name: The name that requests will use.
            folder: PEFT's files.
            load_inplace: Whether the name may be served already; the adapter then becomes its next version.
            pinned: Whether to keep it in its LoRA slot.

        Returns:
            The card of the version that the name now means.

        Raises:
            InvalidRequestError: The name is not valid, that of the base, or served already without `load_inplace`.
            AdapterInvalidError: The files are damaged or unsafe. Nothing is stored.
            AdapterIncompatibleError: It does not fit the base. Nothing is stored.
            CapacityError: It cannot be pinned beside the others. Nothing is stored.
        """
        self._check_name(name)
        with self._lock:
            versions = self._versions(name)
            if any(card.status == "ready" for card in versions) and not load_inplace:
                raise InvalidRequestError(
                    f"The lora adapter {name!r} has already been loaded.",
                    hint="If you want to load the adapter in place, set 'load_inplace' to True.",
                )
            return self._load(name, folder, versions, pinned)

    def unload(self, name: str) -> None:
        """Takes a name out of serving and its weights out of memory; requests that run end as they began.

        Args:
            name: The adapter's name.

        Raises:
            AdapterNotFoundError: No adapter of this name is served.
        """
        with self._lock:
            served = [card for card in self._versions(check_name(name)) if card.status == "ready"]
            if not served:
                raise AdapterNotFoundError(
                    f"The lora adapter {name!r} cannot be found.",
                    hint="GET /v1/models lists those that are served.",
                )
            for card in served:
                self._registry.update(card.ref, status="disabled")
            for card in served:
                self._free(card)

    def register(
        self, name: str, folder: Path, *, force: bool = False, fields: Mapping[str, Any] | None = None
    ) -> AdapterCard:
        """Checks an adapter and stores it as the next version of a name; see `AdapterRegistry.register`.

        Args:
            name: The name.
            folder: PEFT's files.
            force: Accept another base than the files record.
            fields: Fields of the card to set.
        """
        self._check_name(name)
        given = _card_fields(fields or {})
        return self._registry.register(name, folder, base=self._base, force=force, **given)

    def update(self, ref: str, fields: Mapping[str, Any]) -> AdapterCard:
        """Sets fields of a version's card; one that is disabled leaves memory. See `AdapterRegistry.update`."""
        given = _card_fields(fields)
        card = self._registry.revise(ref, lambda _: given)
        if card.status == "disabled":
            self._free(card)
        return card

    def preload(self, ref: str) -> AdapterCard:
        """Loads an adapter ahead of requests; see `Engine.preload`."""
        card = self._registry.resolve(ref)
        self._hub.engine.preload(self._stored(card))
        return card

    def evict(self, ref: str) -> AdapterCard:
        """Takes an adapter out of memory once no running request needs it; a later one loads it again."""
        card = self._registry.get(ref)
        self._free(card)
        return card

    def pin(self, ref: str, pinned: bool) -> AdapterCard:
        """Keeps an adapter in its LoRA slot, or no longer; see `Engine.pin`."""
        card = self._registry.resolve(ref) if pinned else self._registry.get(ref)
        self._hub.engine.pin(self._stored(card), pinned)
        return card

    def _check_name(self, name: str) -> None:
        if name in self._base_names:
            raise InvalidRequestError(f"{name!r} is the name of the base.", hint="Choose another name.")
        check_name(name)

    @property
    def _base(self) -> str | None:
        return self._hub.engine.base_name if self._hub.engine.fingerprint else None

    def _free(self, card: AdapterCard) -> None:
        self._hub.engine.pin(self._stored(card), False)
        self._hub.engine.unload(self._stored(card))

    def _load(self, name: str, folder: Path, versions: list[AdapterCard], pinned: bool) -> AdapterCard:
        newest = versions[-1] if versions else None
        if newest and newest.digest == self._digest(name, folder):
            card = self._registry.update(newest.ref, status="ready")
        else:
            newest, card = None, self.register(name, folder)
        try:
            self._into_memory(card, pinned)
        except AdapterHubError:
            if newest:
                self._registry.update(newest.ref, status=newest.status)
            else:
                self._registry.remove(card.ref)
            raise
        return card

    def _digest(self, name: str, folder: Path) -> str:
        return self._registry.register(name, folder, base=self._base, dry_run=True).digest

    def _into_memory(self, card: AdapterCard, pinned: bool) -> None:
        stored = self._stored(card)
        if pinned:
            self._hub.engine.pin(stored)
        try:
            self._hub.engine.preload(stored)
        except AdapterHubError:
            if pinned:
                self._hub.engine.pin(stored, False)
            raise

    def _versions(self, name: str) -> list[AdapterCard]:
        try:
            return self._registry.versions(name)
        except AdapterNotFoundError:
            return []

    def _stored(self, card: AdapterCard) -> StoredLoraRequest:
        return StoredLoraRequest.of(self._registry, card)


def _card_fields(fields: Mapping[str, Any]) -> CardFields:
    """A client's fields, which become keyword arguments."""
    for name in fields:
        if name not in CardFields.__annotations__:
            raise InvalidRequestError(
                f"A card's {name[:80]!r} cannot be set.",
                hint=f"What can be set: {', '.join(CardFields.__annotations__)}.",
            )
    return cast(CardFields, dict(fields))
