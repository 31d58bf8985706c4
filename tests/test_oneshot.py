"""From LINE:COLUMN to bytes and back into the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from stopgap.daemon import wire
from stopgap.daemon.oneshot import InputError, place_of, read_source, spliced, write_in_place


def at(source: str, position: str) -> str:
    """The source with `|` where the position points."""
    data = source.encode()
    start = place_of(data, position, "", "", "cursor").start
    return data[:start].decode() + "|" + data[start:].decode()


@pytest.mark.parametrize(
    ("source", "position", "pointed"),
    [
        ("ab\ncd", "1:1", "|ab\ncd"),
        ("ab\ncd", "1:3", "ab|\ncd"),
        ("ab\ncd", "2:2", "ab\nc|d"),
        ("ab\r\ncd\r\n", "1:3", "ab|\r\ncd\r\n"),
        ("ab\r\ncd\r\n", "2:1", "ab\r\n|cd\r\n"),
        ("ab\n", "2:1", "ab\n|"),
        ("é😀x", "1:3", "é😀|x"),
        ("\tx", "1:2", "\t|x"),
        ("\ufeffab", "1:1", "\ufeff|ab"),
        ("\ufeffab\ncd", "2:2", "\ufeffab\nc|d"),
        ("", "1:1", "|"),
        ("a\x0cb\u2028c\n", "1:6", "a\x0cb\u2028c|\n"),
    ],
)
def test_columns_count_characters_and_lines_end_with_newlines_only(source: str, position: str, pointed: str) -> None:
    assert at(source, position) == pointed


@pytest.mark.parametrize("position", ["0:1", "1:0", "3:1", "1:4", "1", "1:1:1", "a:b", "-1:1", "1:1x"])
def test_a_position_outside_the_file_is_an_error(position: str) -> None:
    with pytest.raises(InputError, match="--at"):
        place_of(b"ab\ncd", position, "", "", "cursor")


def test_a_marker_is_the_range_it_covers() -> None:
    found = place_of("é # here\n".encode(), "", "# here", "", "cursor")
    assert (found.start, found.end, found.target) == (3, 9, "selection")


@pytest.mark.parametrize(("marker", "complaint"), [("zz", "not in the file"), ("aa", "more than once")])
def test_a_marker_must_be_there_once(marker: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        place_of(b"aaa", "", marker, "", "cursor")


def test_a_selection_is_the_range_between_two_positions() -> None:
    found = place_of(b"ab\ncd\n", "", "", "1:2-2:2", "cursor")
    assert (found.start, found.end, found.target) == (1, 4, "selection")
    for wrong in ("2:2-1:2", "1:1", "1:1-9:9"):
        with pytest.raises(InputError, match="--select"):
            place_of(b"ab\ncd\n", "", "", wrong, "cursor")


@pytest.mark.parametrize("given", [("", "", ""), ("1:1", "a", ""), ("1:1", "", "1:1-1:1")])
def test_one_place_must_be_given(given: tuple[str, str, str]) -> None:
    with pytest.raises(InputError, match="say where"):
        place_of(b"a", *given, "cursor")


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "huge.py").write_bytes(b"#" * (wire.MAX_SOURCE + 1))
    for name, complaint in (
        ("none.py", "No such file"),
        ("latin.py", "not UTF-8"),
        ("huge.py", "4 MB"),
        ("", "directory"),
    ):
        with pytest.raises(InputError, match=complaint):
            read_source(str(tmp_path / name))


def test_bytes_around_the_hole_stay() -> None:
    source = "\ufeffa = HERE\r\n\tb😀".encode()
    start = source.index(b"HERE")
    done = wire.Done(1, start, start + 4, "", (wire.Candidate("é", 0.0),))
    assert spliced(source, done) == "\ufeffa = é\r\n\tb😀".encode()


def test_writing_keeps_mode_and_link_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file, link = tmp_path / "a.py", tmp_path / "link.py"
    file.write_bytes(b"old")
    file.chmod(0o750)
    link.symlink_to(file)
    write_in_place(str(link), b"old", b"new")
    assert link.is_symlink() and file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "link.py"]


def test_a_read_only_file_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"old")
    file.chmod(0o444)
    with pytest.raises(InputError, match="is read-only; nothing was written"):
        write_in_place(str(file), b"old", b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_file_that_changed_meanwhile_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"edited")
    with pytest.raises(InputError, match="changed meanwhile"):
        write_in_place(str(file), b"old", b"new")
    assert file.read_bytes() == b"edited"
