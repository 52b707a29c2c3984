"""From the name in a request's `model` to the folder of an adapter that may answer it. Knows nothing of vLLM's code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.capabilities import Backend, check_adapter
from adapterhub.deploy.vllm_plugin.settings import PluginSettings
from adapterhub.errors import AdapterIncompatibleError, AdapterNotFoundError, InvalidRequestError
from adapterhub.peft_format.checks import check_digest, inspect_adapter
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.references import Ref
from adapterhub.registry.remote import open_registry
from adapterhub.vllm.adapter_names import AdapterName


class RegisteredAdapters:
    """The adapters of a registry that one vLLM may load.

    Args:
        settings: The plugin's settings.
    """

    def __init__(self, settings: PluginSettings) -> None:
        self._settings = settings
        self._registry = open_registry(settings.registry, max_cache_bytes=settings.registry_cache_mib * 2**20)

    def folder(self, model: str, served_base: str) -> Path | None:
        """The folder of the adapter that a model name means, checked.

        Args:
            model: `json@3`, `json--v3-1a2b3c4d`; where the settings allow it also `json` and `json@prod`.
            served_base: vLLM's `--model`: a folder or a hub id.

        Returns:
            A folder whose files never change; that of a URL's registry may leave the cache. None if the registry has
            no such adapter.

        Raises:
            InvalidRequestError: The name means no fixed version, and the settings ask for one.
            AdapterInvalidError: The files are damaged, or not those that were registered.
            AdapterIncompatibleError: It belongs to another base, or vLLM does not run it.
            AdapterDisabledError: The version is disabled.
            RegistryError: The registry cannot be read.
        """
        card = self._card(model)
        if card is None:
            return None
        self._check_base(card, served_base)  # before anything is downloaded
        folder = self._registry.folder(card).resolve()
        check_digest(card.ref, card.digest, inspect_adapter(folder).digest)
        check_adapter(folder, Backend.VLLM, name=card.ref)
        return folder

    def _card(self, model: str) -> AdapterCard | None:
        name = AdapterName.parse(model)
        try:
            ref = Ref(name.adapter, name.version) if name else Ref.parse(model)
        except InvalidRequestError:
            return None
        try:
            card = self._registry.resolve(str(ref))
        except AdapterNotFoundError:
            return None
        if name and not card.digest.removeprefix("sha256:").startswith(name.digest):
            return None  # another adapter was registered under this name and number
        if ref.version is None and self._settings.names == "pinned":
            raise InvalidRequestError(
                f"{model!r} may come to mean another version, and vLLM would stay with the present one.",
                hint=f"Ask for {card.ref!r}, or start vLLM with ADAPTERHUB_VLLM_NAMES=any.",
            )
        return card

    def _check_base(self, card: AdapterCard, served: str) -> None:
        known, wanted = card.base.fingerprint, self._settings.base
        if wanted is None and known and Path(served).is_dir():
            difference = known.mismatch(_fingerprint(served))
        else:
            wanted = wanted or served
            difference = (
                None if card.base.name == wanted else f"its base is {card.base.name!r}, not {wanted!r}"
            )
        if difference:
            raise AdapterIncompatibleError(
                f"{card.ref} does not belong to the base that vLLM serves: {difference}.",
                hint="If it is another form of the same base, set ADAPTERHUB_BASE to the name on the card.",
            )


@cache
def _fingerprint(folder: str) -> BaseFingerprint:
    return BaseFingerprint.of(folder)
