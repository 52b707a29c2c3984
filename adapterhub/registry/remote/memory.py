"""fsspec's file system in memory, for tests and measurements, without its passes over all files for each one."""

from __future__ import annotations

from typing import Any


def memory_files() -> type[Any]:
    """The class of the file system, whose files are those of every `MemoryFileSystem` of this process."""
    from fsspec.implementations.memory import MemoryFileSystem

    class MemoryFiles(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        def info(self, path: str, **options: Any) -> dict[str, Any]:
            """What is known of a file or folder."""
            name = self._strip_protocol(path)
            file = self.store.get(name)
            if file is None:
                return dict(super().info(path, **options))
            return {"name": name, "size": file.size, "type": "file", "created": file.created}

        def find(self, path: str, detail: bool = False, **options: Any) -> Any:
            """All files below a path."""
            start = f"{self._strip_protocol(path)}/"
            found = {name: self.info(name) for name in [*self.store] if name.startswith(start)}
            return found if detail else sorted(found)

    return MemoryFiles
