"""The plot is well-formed, holds every point, and keeps them inside its frame."""

import xml.etree.ElementTree as ET

import pytest

from stopgap.infill.plot import HEIGHT, LEFT, WIDTH, Point, svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point("a", "a", 0.0, 0.0)],
        [Point("by steps", f"{n} <steps> & more", 10.0 * n, 100.0 * n / 32) for n in (1, 4, 8, 32)],
        [Point("a", "a", 0.003, 3), Point("b", "b", 90_000, 55.5)],
    ],
)
def test_every_point_is_inside_the_frame(points: list[Point]) -> None:
    picture = ET.fromstring(svg(points, "milliseconds", "pass@1 (%)"))
    dots = list(picture.iter(f"{SVG}circle"))
    assert len(dots) == len(points)
    for dot in dots:
        assert LEFT <= float(dot.attrib["cx"]) <= WIDTH and 0 <= float(dot.attrib["cy"]) <= HEIGHT
    labels = {text.text for text in picture.iter(f"{SVG}text")}
    assert {point.label for point in points} | {"milliseconds", "pass@1 (%)"} <= labels


def test_later_and_better_is_further_right_and_higher() -> None:
    picture = ET.fromstring(svg([Point("s", "4", 20, 30), Point("s", "8", 40, 50)], "x", "y"))
    first, second = picture.iter(f"{SVG}circle")
    assert float(first.attrib["cx"]) < float(second.attrib["cx"])
    assert float(first.attrib["cy"]) > float(second.attrib["cy"])
