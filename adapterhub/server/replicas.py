"""The servers behind this one, where the engine has some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub
    from adapterhub.vllm import ReplicaState


@runtime_checkable
class ReplicatedEngine(Protocol):
    """An engine over several servers; `VLLMEngine` is one."""

    def replicas(self) -> tuple[ReplicaState, ...]:
        """A snapshot of each server."""
        ...

    def drain(self, url: str, draining: bool = True) -> None:
        """Gives a server no new requests, or gives it requests again."""
        ...


def replicas_of(hub: AdapterHub) -> tuple[ReplicaState, ...] | None:
    """The servers behind a hub; None where its engine runs in this process. Blocks for a moment.

    Args:
        hub: The hub.
    """
    return hub.engine.replicas() if isinstance(hub.engine, ReplicatedEngine) else None
