"""Training rows: what the encoder reads, what canvases see, what is noise and what counts."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from stopgap.infill import shards
from stopgap.infill.corpus import SourceFile
from stopgap.infill.objective import Noise, Rows, rows, spoil, window
from stopgap.infill.prompt import InfillMarkers
from stopgap.infill.shards import KINDS, Shard
from stopgap.infill.training_config import MARKERS, PAD

SOURCE = (
    "import os\n\n\n"
    + "\n\n".join(
        f"def call_{i}(name, value={i}):\n    if name in os.environ:\n        total = value + {i}\n"
        f"        return os.environ[name], total\n    return None"
        for i in range(40)
    )
    + "\n"
)
WEIGHTS = dict.fromkeys(KINDS, 1.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shards.train_tokenizer([SOURCE], 400)


@pytest.fixture(scope="module")
def shard(tokenizer: Tokenizer) -> Shard:
    files = [SourceFile("p", f"{i}.py", "train", SOURCE.replace("value", f"v{i}")) for i in range(3)]
    return shards.build(files, tokenizer, WEIGHTS, 20, 200, 40, seed=0)


def batch(shard: Shard, noise: Noise | None = None, canvases: int = 4, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(shard))[:24]
    return rows(shard, chosen, 128, canvases, 64, MARKERS, noise or Noise(), PAD, 400, rng)


def test_the_markers_are_the_tokenizers(tokenizer: Tokenizer) -> None:
    names = {"bos": "<bos>", "suffix": "<suf>", "prefix": "<pre>", "end": "<end>", "delete": "<del>"}
    assert InfillMarkers(**{field: tokenizer.token_to_id(name) for field, name in names.items()}) == MARKERS


def test_prefix_hole_and_suffix_join_to_the_file(shard: Shard, tokenizer: Tokenizer) -> None:
    for index in range(len(shard)):
        a, b, c, d = shard.cuts[index]
        file = shard.hole_file[index]
        prefix = [*shard.tokens[shard.file_start[file] : shard.hole_before[index]], *shard.pieces[a:b]]
        suffix = [*shard.pieces[c:d], *shard.tokens[shard.hole_after[index] : shard.file_start[file + 1]]]
        text = "".join(tokenizer.decode(part) for part in (prefix, shard.pieces[b:c], suffix))
        assert text == SOURCE.replace("value", f"v{file}")


def test_a_row_reads_bos_suffix_prefix_hole_end(shard: Shard) -> None:
    for index in range(0, len(shard), 7):
        made = window(shard, index, 100, MARKERS, np.random.default_rng(index))
        assert len(made.ids) <= 100
        assert made.ids[0] == MARKERS.bos and made.ids[-1] == MARKERS.end
        assert made.ids.index(MARKERS.suffix) < made.ids.index(MARKERS.prefix) < made.hole_at
        b, c = shard.cuts[index, 1:3]
        assert made.ids[made.hole_at : -1] == shard.pieces[b:c].tolist()


def test_no_loss_on_padding_or_on_markers_whose_place_is_chance(shard: Shard) -> None:
    made = batch(shard)
    target = made.ids[:, 1:]
    assert not made.weight[np.isin(target, (PAD, MARKERS.prefix, MARKERS.suffix))].any()
    assert made.weight[target == MARKERS.end].all() and (target == MARKERS.end).sum() > 1.5 * len(target)


def test_a_draft_ends_anywhere_in_a_row(shard: Shard) -> None:
    """Where it always ended at the row's end, the model learnt the place and not the reason."""
    made = batch(shard)
    ends = [int(np.flatnonzero(row == MARKERS.end)[0]) for row in made.ids]
    assert len(set(ends)) > 11 and max(ends) > 100 and min(ends) < 50
    assert (made.ids != PAD).mean() > 0.95


def test_a_canvas_stands_where_its_prefix_ends(shard: Shard, tokenizer: Tokenizer) -> None:
    """The encoder text before the cut, the hole and the clamped suffix are one stretch of the file."""
    made = batch(shard)
    own = other = 0
    for row in range(len(made.ids)):
        for k in range(4):
            cut = made.cut[row, k]
            hole = made.truth[row, k][made.hole[row, k]]
            near = made.truth[row, k][made.used[row, k] & ~made.hole[row, k]]
            begin = int(np.flatnonzero(made.ids[row] == MARKERS.prefix)[0]) + 1
            before = made.ids[row, max(cut - 8, begin) : cut]
            text = "".join(tokenizer.decode(part) for part in (before, hole[hole != MARKERS.delete], near))
            assert any(text in SOURCE.replace("value", f"v{i}") for i in range(3)), text
            own, other = own + (k < 2), other + (k >= 2)
    assert own and other


def test_only_hole_slots_are_spoilt_or_counted(shard: Shard) -> None:
    made = batch(shard)
    assert np.array_equal(made.canvas[~made.hole], made.truth[~made.hole])
    assert not made.canvas_weight[~made.hole].any() and made.canvas_weight[made.hole].all()
    assert not (made.hole & ~made.used).any()


def test_spare_slots_follow_the_hole_and_weigh_little(shard: Shard) -> None:
    made = batch(shard, Noise(full=1.0, spare_weight=0.2))
    seen = 0
    for truth, hole, weight in zip(
        made.truth.reshape(-1, 64), made.hole.reshape(-1, 64), made.canvas_weight.reshape(-1, 64), strict=True
    ):
        spare = np.flatnonzero(hole & (truth == MARKERS.delete))
        if len(spare) > 1:
            seen += 1
            assert spare[-1] == hole.sum() - 1 and np.array_equal(np.diff(spare), np.ones(len(spare) - 1))
            assert weight[spare[0]] == 1.0 and weight[spare[1:]] == pytest.approx(0.2)
    assert seen


@pytest.mark.parametrize(("noise", "low", "high"), [(Noise(full=1.0), 1.0, 1.0), (Noise(full=0.0, low=0.5), 0.7, 0.8)])
def test_the_share_of_noise_is_the_configured_one(noise: Noise, low: float, high: float) -> None:
    truth = np.zeros((50, 4, 64), dtype=np.int64)
    hole = np.ones_like(truth, dtype=np.bool_)
    _, spoilt = spoil(truth, hole, noise, 400, np.random.default_rng(0))
    assert low - 1e-9 <= spoilt.mean() <= high


def test_the_same_seed_makes_the_same_rows(shard: Shard) -> None:
    one, two = batch(shard, seed=3), batch(shard, seed=3)
    assert all(np.array_equal(getattr(one, f), getattr(two, f)) for f in Rows.__slots__)
