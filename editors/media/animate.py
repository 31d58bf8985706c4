"""Draws editors/media/denoise.svg: a hole that settles, from the drafts of a real run of the daemon.

    python -P editors/media/animate.py [FILE MARKER]

Every picture is one draft as it came, at the time it came, only slower (the caption says how much). Bright text
has settled, dim text is still noise. The daemon and the model are the configured ones. A run in which nothing can be
seen to settle, or whose end has not passed the syntax check, leaves the picture as it was and says so.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from stopgap.daemon import oneshot, wire
from stopgap.infill.files import write_whole

HERE = Path(__file__).parent
AROUND = 6
"""Lines of the file shown above and below the hole."""
SECONDS, FINAL_S = 6.0, 3.0
"""How long the denoising takes in the picture, and how long its end stays."""
FEWEST = 3
"""Different drafts that a picture needs."""
SLOWEST_MS = 10_000
"""A hole takes the starter a second or two on an idle machine; the caption of a slower run says nothing of it."""
WIDTH, LINE, CHARACTER, SIZE = 840, 21, 8.43, 14
COLORS = {"back": "#1f2430", "code": "#cbccc6", "noise": "#5c6773", "settled": "#bae67e", "caption": "#8a9199"}


@dataclass(frozen=True, slots=True)
class Frame:
    """One draft; `at` is in seconds since the request was sent."""

    at: float
    text: str
    settled: tuple[tuple[int, int], ...]
    caption: str


def main() -> None:
    file, marker = sys.argv[1:3] if len(sys.argv) == 3 else ("examples/inventory.py", "# fill here")
    source = oneshot.read_source(file)
    hole = oneshot.place_of(source, "", marker, "", "cursor")
    language = oneshot.language_of(file, "")
    request = wire.Fill(
        source=source,
        language=language,
        start=hole.start,
        end=hole.end,
        target=hole.target,
        path=file,
        want_drafts=True,
    )
    # The first run loads the model and fills caches; the second is what a user sees.
    asyncio.run(oneshot.ask(request))
    drafts: list[tuple[float, wire.Draft]] = []
    begin = time.perf_counter()

    def watch(frame: wire.Draft | wire.Progress) -> None:
        if isinstance(frame, wire.Draft):
            drafts.append((time.perf_counter() - begin, frame))

    done = asyncio.run(oneshot.ask(request, watch))
    if why := unfit(done, [draft.text for _, draft in drafts]):
        raise SystemExit(f"no picture: {why}")
    assert isinstance(done, wire.Done)
    end = time.perf_counter() - begin
    frames = [Frame(at, draft.text, draft.settled, f"denoising step {draft.step}") for at, draft in drafts]
    best = done.fills[0].text
    last = f"{done.model}: {done.steps} steps, {done.milliseconds:.0f} ms, syntax checked"
    frames.append(Frame(end, best, ((0, len(best)),), last))
    above = source[: done.start].decode().split("\n")[-AROUND - 1 :]
    below = source[done.end :].decode().split("\n")[: AROUND + 1]
    picture = svg(frames, "\n".join(above), "\n".join(below))
    write_whole(HERE / "denoise.svg", picture)
    print(f"{len(frames)} pictures, {len(picture) / 1024:.0f} KiB; {last}")


def unfit(done: wire.Done | wire.Error, drafts: Sequence[str]) -> str:
    """Why a run would make no good picture; empty if it would."""
    if isinstance(done, wire.Error):
        return done.message
    if not done.fills:
        return done.reason
    if not done.fills[0].checked:
        return "the fill could not be checked; name a file of a language with a grammar"
    if len(set(drafts)) < FEWEST:
        return f"only {len(set(drafts))} different drafts came, so nothing would move; name another FILE and MARKER"
    if done.milliseconds > SLOWEST_MS:
        return f"{done.milliseconds / 1000:.0f} s for one hole: the machine is busy; try again when it is not"
    return ""


def svg(frames: list[Frame], above: str, below: str) -> str:
    slower = SECONDS / frames[-1].at
    total = SECONDS + FINAL_S
    height = LINE * (max(f"{above}{frame.text}{below}".count("\n") for frame in frames) + 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="ui-monospace, Menlo, '
        f'Consolas, monospace" font-size="{SIZE}" xml:space="preserve">',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{COLORS["back"]}"/>',
    ]
    for index, frame in enumerate(frames):
        start = frame.at * slower / total if index else 0.0
        stop = frames[index + 1].at * slower / total if index + 1 < len(frames) else 1.0
        caption = f"{frame.caption} · shown {slower:.0f} times slower" if slower >= 1.5 else frame.caption
        still = "hidden" if index + 1 < len(frames) else "visible"  # what a viewer that does not animate shows
        parts.append(f'<g visibility="{still}">{shown(start, stop)}{code(frame, above, below)}')
        parts.append(f'<text x="20" y="{height - LINE}" fill="{COLORS["caption"]}">{escape(caption)}</text></g>')
    return "".join([*parts, "</svg>\n"]).replace("<g visibility", "\n<g visibility")


def shown(start: float, stop: float) -> str:
    """An animation that shows its parent from `start` to `stop`, as shares of the whole."""
    times = sorted({0.0, round(start, 4), round(stop, 4)} - {1.0})
    values = ";".join("visible" if start - 1e-4 <= at < stop - 1e-4 else "hidden" for at in times)
    keys = ";".join(f"{at:g}" for at in times)
    return (
        f'<animate attributeName="visibility" calcMode="discrete" values="{values}" keyTimes="{keys}" '
        f'dur="{SECONDS + FINAL_S:g}s" repeatCount="indefinite"/>'
    )


def code(frame: Frame, above: str, below: str) -> str:
    """The lines of one picture, in runs of one colour."""
    kinds = ["code"] * len(above) + ["noise"] * len(frame.text) + ["code"] * len(below)
    for start, end in frame.settled:
        kinds[len(above) + start : len(above) + end] = ["settled"] * (end - start)
    lines, at = [], 0
    for number, line in enumerate(f"{above}{frame.text}{below}".split("\n")):
        runs: list[tuple[str, str]] = []
        for character, kind in zip(line, kinds[at:], strict=False):
            if runs and (runs[-1][0] == kind or character == " "):
                runs[-1] = (runs[-1][0], runs[-1][1] + character)
            else:
                runs.append((kind, character))
        at += len(line) + 1
        spans = "".join(f'<tspan fill="{COLORS[kind]}">{escape(text)}</tspan>' for kind, text in runs if text)
        if spans:
            # A given length keeps columns in line where the reader's font is wider or narrower.
            length = f'textLength="{len(line) * CHARACTER:.0f}"'
            lines.append(f'<text x="20" y="{LINE * (number + 2)}" {length} xml:space="preserve">{spans}</text>')
    return "".join(lines)


if __name__ == "__main__":
    main()
