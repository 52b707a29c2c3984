"""URLs of registries: `s3://bucket/prefix`, `gs://bucket/prefix`, `hf://organisation/name`, `memory://name`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from adapterhub.errors import ConfigError

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]{1,15})://(?P<path>.*)", re.DOTALL)
# A key of S3 may have more characters; these need no escape anywhere, and `..` is no part of a path.
_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.=@-]{1,128}")
_MAX_PARTS = 16


@dataclass(frozen=True)
class RegistryUrl:
    """Where a registry is in a store.

    Attributes:
        protocol: Of fsspec, such as `s3`.
        path: The bucket or repository and the prefix, without a slash at the ends.
    """

    protocol: str
    path: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    @property
    def slug(self) -> str:
        """A name for files of this machine: readable, and different for different URLs."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", str(self)).strip("-")[:60]
        return f"{readable}-{hashlib.sha256(str(self).encode()).hexdigest()[:12]}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a URL.

        Raises:
            ConfigError: It is no URL, or holds credentials or a query, which would end up in logs.
        """
        match = _URL.fullmatch(text)
        if match is None:
            raise ConfigError("That is no URL of a registry.", hint="Write it as s3://bucket/prefix.")
        protocol, parts = match["protocol"], match["path"].strip("/").split("/")
        # What is refused is not quoted: it may be a key.
        if re.search(r"[:?#]|^[^/]*@", match["path"]):
            raise ConfigError(
                f"The registry's {protocol}:// URL holds a user, a port or a query.",
                hint="Give credentials and an endpoint to the store's own library, for example AWS_ACCESS_KEY_ID, "
                "AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS or HF_TOKEN.",
            )
        if len(parts) > _MAX_PARTS or not all(_PART.fullmatch(part) for part in parts):
            raise ConfigError(
                f"The registry's {protocol}:// URL has a part that no registry's has.",
                hint="Parts have letters, digits and any of '_.=@-'; none is empty, '.' or '..'.",
            )
        return cls(match["protocol"], "/".join(parts))
