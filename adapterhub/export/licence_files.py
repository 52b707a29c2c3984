"""The licences of an adapter or a base, which go with whatever is made of it."""

from __future__ import annotations

from pathlib import Path

from adapterhub._files import read_bounded

_MAX_BYTES = 2**20


def copy_licences(source: Path, out: Path, *, follow_links: bool = False) -> None:
    """Copies `LICENSE*` and `NOTICE*`.

    Args:
        source: The folder of an adapter or a base.
        out: The folder that is made.
        follow_links: Whether they may be links, as the files of a base in the hub's cache are.

    Raises:
        AdapterInvalidError: One cannot be read, or is no regular file of at most 1 MiB.
        OSError: One cannot be written.
    """
    for path in sorted([*source.glob("LICENSE*"), *source.glob("NOTICE*")]):
        (out / path.name).write_bytes(read_bounded(path, _MAX_BYTES, follow_links=follow_links))
