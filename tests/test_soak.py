"""Small versions of `stopgap bench daemon`, which keeps its full ones."""

from __future__ import annotations

import pytest

from stopgap.daemon.soak import TRIALS, Result, run_trials


@pytest.mark.slow
@pytest.mark.parametrize("name", ["racing", "soak", "fuzz", "killed"])
def test_a_promise_is_kept_at_a_hundredth_of_its_size(name: str) -> None:
    results: list[Result] = []
    assert run_trials([name], 0.01, results.append), results
    assert results[0].kept


def test_every_trial_has_its_promise_in_words() -> None:
    assert all(trial.__doc__ for trial in TRIALS.values())
