"""Left-to-right drafts as seeds for a canvas: those that go round in circles are turned."""

import pytest
import torch
from scripted import END, ScriptedModel

from stopgap.infill import work
from stopgap.infill.drafts import left_to_right


class Stubborn(ScriptedModel):
    """Wants the ids of `wish` round and round, with `other` as its second choice and the end as its third."""

    def __init__(self, wish: list[int], other: int) -> None:
        super().__init__([])
        self.wish, self.other = wish, other

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        at = int(hidden[-1, 0])
        self.prompt = self.prompt or at
        logits = torch.zeros(1, self.vocabulary)
        logits[0, self.wish[(at - self.prompt) % len(self.wish)]] = 9.0
        logits[0, self.other] = 8.0
        logits[0, END] = 7.0
        return logits


def draft(model: ScriptedModel, most: int = 12) -> list[int]:
    cache = model.new_cache(64)
    last = model.encode(cache, [1, 2, 3])[-1:]
    nothing = torch.zeros(model.vocabulary, dtype=torch.bool)
    ids: list[int] = []
    for item in left_to_right(cache, last, ends={END}, banned=nothing, blank=nothing, max_tokens=most):  # type: ignore[arg-type]
        if isinstance(item, list):
            ids = item
        else:
            work.run(model, item)  # type: ignore[arg-type]
    assert len(cache) == 3, "the cache is cropped back to the prefix"
    return ids


@pytest.mark.parametrize(("wish", "rounds"), [([20], 6), ([20, 21], 3), ([20, 21, 22], 3), ([20, 21, 22, 23], 3)])
def test_a_draft_does_not_go_round_in_circles(wish: list[int], rounds: int) -> None:
    said = draft(Stubborn(wish, 40))
    last = len(wish) * rounds - 1
    assert said[:last] == (wish * rounds)[:-1]
    assert said[last] == 40, "the second choice instead of another round"


def test_a_draft_ends_where_the_model_ends_it() -> None:
    assert draft(ScriptedModel([30, 31, 32])) == [30, 31, 32]


def test_a_draft_is_cut_at_its_limit() -> None:
    assert draft(ScriptedModel([30, 31, 32]), most=2) == [30, 31]
