"""The names under which servers know the adapters of a registry: `json--v3-1a2b3c4d`.

The digest is a part of the name, and a name is never loaded again with other weights. So a server cannot answer with
another version, nor with what was registered under the same name and number elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from adapterhub.errors import InvalidRequestError
from adapterhub.lora.request import LoraRequest, StoredLoraRequest
from adapterhub.registry.references import Ref

_NAME = re.compile(
    r"(?P<adapter>[a-z0-9][a-z0-9._-]{0,62})--v(?P<version>[1-9][0-9]{0,8})-(?P<digest>[0-9a-f]{8})"
)
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{8})[0-9a-f]*")


@dataclass(frozen=True)
class AdapterName:
    """The model name of one version of an adapter; `str` of it is what servers are told.

    Attributes:
        adapter: The adapter's name in the registry.
        version: Its version.
        digest: The first 8 hexadecimal digits of its digest.
    """

    adapter: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.adapter}--v{self.version}-{self.digest}"

    @classmethod
    def of(cls, ref: str, digest: str) -> Self:
        """The name of a version in a registry.

        Args:
            ref: The reference to exactly this version: `name@version`.
            digest: The digest of its weights and settings.

        Raises:
            InvalidRequestError: They are not those of a version.
        """
        version, digits = Ref.parse(ref), _DIGEST.fullmatch(digest)
        if version.version is None or digits is None:
            raise InvalidRequestError(
                f"{ref!r} is no version of an adapter, such as 'json@3', with its digest."
            )
        return cls(version.name, version.version, digits[1])

    @classmethod
    def parse(cls, model: str) -> Self | None:
        """The parts of a model name; None if it is the name of something else."""
        match = _NAME.fullmatch(model)
        return cls(match["adapter"], int(match["version"]), match["digest"]) if match else None


def model_name(adapter: StoredLoraRequest) -> str:
    """The name under which servers know an adapter.

    Raises:
        InvalidRequestError: As `AdapterName.of`.
    """
    return str(AdapterName.of(adapter.name, adapter.digest))


def stored_adapter(adapter: LoraRequest) -> StoredLoraRequest:
    """The adapter, if it is one in a folder, which a server can keep.

    Raises:
        InvalidRequestError: It is not, such as a blend.
    """
    if not isinstance(adapter, StoredLoraRequest):
        raise InvalidRequestError(
            f"{adapter.name!r} is not stored in a registry, so a vLLM server cannot keep it loaded.",
            hint="Register a blend as an adapter, with hub.blend or `adapterhub blend`.",
        )
    return adapter
