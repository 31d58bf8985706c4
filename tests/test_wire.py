"""The messages as they are declared: they mirror what the engine takes and gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stopgap.daemon import wire
from stopgap.infill import contract


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (wire.Fill, contract.FillRequest),
        (wire.Snippet, contract.Snippet),
        (wire.Draft, contract.Draft),
        (wire.Candidate, contract.Fill),
        (wire.Event, contract.Event),
        (wire.Done, contract.Outcome),
    ],
)
def test_the_wire_mirrors_the_engines_contract(ours: Any, theirs: Any) -> None:
    def shape(cls: Any) -> list[tuple[str, Any]]:
        return [(field.name, field.default) for field in dataclasses.fields(cls) if field.name != "id"]

    assert shape(ours)[: len(shape(theirs))] == shape(theirs)
