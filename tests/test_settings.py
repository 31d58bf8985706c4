"""Settings from the client: what is understood, what is refused, and with which words."""

import pytest

from stopgap.lsp.settings import Settings, merged


def test_names_are_camel_case_and_missing_ones_keep_their_value() -> None:
    settings = merged(Settings(candidates=5), {"showThreshold": 0, "disabledLanguages": ["markdown"]})
    assert settings == Settings(candidates=5, show_threshold=0.0, disabled_languages=("markdown",))


def test_settings_may_stand_under_the_key_stopgap() -> None:
    assert merged(Settings(), {"stopgap": {"automatic": False}}).automatic is False


@pytest.mark.parametrize("given", [None, [], "x", {}, {"stopgap": {}}, {"enabled": None}])
def test_nothing_given_changes_nothing(given: object) -> None:
    assert merged(Settings(), given) == Settings()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"automatc": False}, "unknown setting 'automatc'; did you mean 'automatic'?"),
        ({"zzz": 1}, "unknown setting 'zzz'"),
        ({"candidates": "many"}, "setting 'candidates': int was expected"),
        ({"candidates": True}, "setting 'candidates': int was expected"),
        ({"candidates": 99}, "setting 'candidates': a number from 1 to 8 was expected"),
        ({"showThreshold": float("nan")}, "setting 'showThreshold': a number from 0 to 1 was expected"),
        ({"completion": "maybe"}, "setting 'completion': one of auto, always, never was expected"),
        ({"disabledGlobs": "*.md"}, "setting 'disabledGlobs': a list of strings was expected"),
        ({"unknown": ["x"]}, "unknown setting 'unknown'"),
        ({"stopgap": 3}, "stopgap: an object with settings was expected"),
    ],
)
def test_a_wrong_entry_is_named_and_changes_nothing(given: object, line: str) -> None:
    settings = merged(Settings(), given)
    assert settings.unknown == (line,)
    assert merged(settings, {}) == Settings()


def test_the_right_entries_beside_a_wrong_one_count() -> None:
    assert merged(Settings(), {"zzz": 1, "enabled": False}).enabled is False
