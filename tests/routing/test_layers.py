"""The layers inside the room, and its public names."""

from pathlib import Path

import pytest

import adapterhub.routing
from tests.test_architecture import imports

ROOM = Path(adapterhub.routing.__file__).parent
LAYERS = [
    {"rules", "decision"},
    {"routes"},
    {"filters", "classifier"},
    {"deciding"},
    {"analysis", "feedback"},
    {"router"},
    {"registry_sync"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in ROOM.rglob("*.py") if path.parent != ROOM or path.stem != "__init__")

EXPORTED = [
    "AdapterRouter",
    "CardCorrections",
    "Correction",
    "DecisionLog",
    "Encoder",
    "Evaluation",
    "Evidence",
    "Explanation",
    "Finding",
    "LabelledRequests",
    "Policy",
    "Route",
    "RouteDecision",
    "RouteFilter",
    "SyncedRouter",
    "TokenEmbeddings",
    "candidates",
    "current_router",
    "evaluate",
    "evaluate_held_out",
    "findings_before_fit",
    "html_report",
    "learn_corrections",
    "measures",
    "read_corrections",
    "read_labelled_requests",
    "routes_from_cards",
    "saved_router",
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOM).as_posix())
def test_imports_inside_the_room_point_down(path: Path):
    here = path.relative_to(ROOM).parts[0].removesuffix(".py")
    for module in imports(path):
        parts = module.split(".")
        if parts[:2] != ["adapterhub", "routing"] or parts[2] == here:
            continue
        assert LEVEL[parts[2]] < LEVEL[here], f"{here} may not import {module}"


def test_the_exported_names_are_these():
    assert sorted(adapterhub.routing.__all__) == EXPORTED
    assert all(getattr(adapterhub.routing, name) is not None for name in EXPORTED)
