"""The step benchmarks: they run on any model, and the number of operations a step may not creep up."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build, random_shape, save

from stopgap.daemon import cli, keystroke
from stopgap.infill import bench, bench_gpu, bench_report
from stopgap.infill.bench_gpu import Bench, Grid
from stopgap.infill.contract import FillError
from stopgap.infill.planner import Routing, Storage, real_model, weight_bytes
from stopgap.infill.random_weights import random_model, skew_routing, small_model

GRID = Grid((16,), (20,), (1, 2), (20,), True, ((16, 20),), 1)


def test_every_engine_has_a_line_for_both_canvases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "operations", lambda: "operations")
    folder, ticks = save(build(9, **random_shape(9)), tmp_path), count()
    table = bench.step(
        folder,
        clock=lambda: float(next(ticks)),
        own_clock=lambda: 0.5 * next(ticks),
        prefix_tokens=20,
        free_slots=4,
        repeats=3,
    )
    assert "4 free + 0 clamped slots" in table and "4 free + 4 clamped slots" in table
    engines = ["transformers, float32", "transformers, bfloat16", "stopgap, float32", "stopgap, int8"]
    lines = re.findall(r"^ +(\S+, \S+) +2000\.00 +1\.00x +1000\.00 +1\.00x$", table, flags=re.MULTILINE)
    assert lines == engines * 2


@pytest.mark.slow
def test_a_step_stays_below_1500_operations_on_a_gpus_path() -> None:
    """On 30 layers of 128 experts; transformers takes about 5,400 in the same count."""
    found = re.search(r"transformers (\d+), stopgap (\d+) on a GPU", bench.operations())
    assert found
    theirs, ours = map(int, found.groups())
    assert ours <= 1500 and theirs > 3 * ours


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """The whole full-size run on a tiny model; a tick of its clock is a millisecond."""
    ticks, saved = count(), []
    config = small_model(real_model())
    made = Bench(
        config,
        4,
        torch.device("cpu"),
        lambda: next(ticks) / 1000,
        print,
        lambda one: saved.append(len(one["steps"])),
        GRID,
    )
    found = made.run("2026-01-31")
    assert saved[0] == 1 and saved[-1] == len(found["steps"]), "every line is saved when it is measured"
    return found


def test_the_full_size_run_measures_every_size_with_both_routings_and_transformers(record: dict[str, Any]) -> None:
    assert record["failed"] == []
    kinds = [(line["engine"], line["routing"], line["rows"]) for line in record["steps"]]
    ours = [("stopgap", routing, rows) for routing in ("even", "skewed") for rows in (1, 2)]
    assert kinds == [*ours, ("transformers", "even", 1), ("transformers", "even", 2)]
    assert all(line["ms"] == pytest.approx(1.0) and line["floor_ms"] > 0 for line in record["steps"])
    even, skewed = (record["steps"][at]["hit_experts"] for at in (0, 2))
    assert 0 < skewed < even <= 16


def test_the_kernels_of_a_step_and_their_errors_are_in_the_record(record: dict[str, Any]) -> None:
    groups = {line["group"]: line for line in record["kernels_of_a_step"]}
    assert set(groups) == {
        "experts",
        "dense products",
        "head",
        "expected embedding",
        "attention",
        "between products",
        "other",
    }
    assert groups["attention"]["launches"] > 0 and groups["experts"]["floor_ms"] > 0
    kernels = {"matmul", "experts", "head", "residual", "gated product"}
    kernels |= {f"{kernel}, {kind}" for kernel in ("attention", "heads") for kind in ("sliding", "full")}
    said = {(line["kernel"], line["tokens"]) for line in record["errors"]}
    assert said == {(kernel, tokens) for kernel in kernels for tokens in (32, 256)}
    timed = [line for line in record["errors"] if "ms" in line]
    assert len(timed) == 12 and all(line["torch_ms"] > 0 for line in timed)
    assert all(line["relative_rms"] < 2e-3 for line in record["errors"])


def test_a_whole_fill_is_timed(record: dict[str, Any]) -> None:
    line = {"slots": 16, "prefix": 20, "steps": 12, "ms": pytest.approx(1.0), "tokens_a_second": pytest.approx(16000)}
    assert record["fills"] == [line]
    assert "| 16 slots | 20 | 12 | 1.0 | 16000 |" in bench_report.table(record)


def test_table_and_plot_are_made_of_the_record_alone(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / bench_report.file_name(record | {"device": "NVIDIA H200"})
    assert path.name == "2026-01-31-nvidia-h200.json"
    path.write_text(json.dumps(record))
    found = bench_report.read_record(path)
    table = bench_report.table(found)
    assert len(re.findall(r"^\| 1 x 16 \| 20 \| even, \d+ \|.*\| 1\.0x \|$", table, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^\| [12] x 16 \|", table, flags=re.MULTILINE)) == 4
    words = {text.text for text in ET.fromstring(bench_report.picture(found)).iter("{http://www.w3.org/2000/svg}text")}
    assert "1.00" in words and any(word and word.startswith("floor ") for word in words)


def test_a_readme_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{bench_report.BEGIN}\nold\n{bench_report.END}\nafter\n")
    bench_report.into(readme, "| new |\n")
    assert readme.read_text() == f"before\n{bench_report.BEGIN}\n| new |\n{bench_report.END}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(FillError, match="lacks the lines"):
        bench_report.into(readme, "| new |\n")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}'])
def test_what_is_no_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FillError, match="is no record"):
        bench_report.read_record(path)


def test_what_fails_is_kept_beside_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted\nmore")

    monkeypatch.setattr(bench_gpu, "kernel_errors", broken)
    ticks = count()
    config = small_model(real_model())
    grid = Grid((16,), (20,), (1,), (), False, (), 1)
    made = Bench(config, 4, torch.device("cpu"), lambda: next(ticks) / 1000, print, lambda _: None, grid)
    found = made.run("2026-01-31")
    assert found["failed"] == [{"what": "errors", "why": "RuntimeError: CUDA error: operation not permitted"}]
    assert len(found["steps"]) == 1


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_random_weights_are_as_large_as_the_planner_says(bits: Any) -> None:
    config = small_model(real_model())
    model = random_model(config, bits)
    planned = weight_bytes(config, Storage.of(bits))
    if bits == 16:  # on a CPU in fp32
        planned *= 2
    assert model.nbytes == pytest.approx(planned, rel=0.05)


def test_random_weights_spread_tokens_and_skewed_routers_do_not() -> None:
    config = small_model(real_model())
    model = random_model(config)
    canvas, free = torch.arange(16)[None], torch.ones((1, 16), dtype=torch.bool)
    cache = model.new_cache(8)
    model.encode(cache, list(range(8)))
    hits = []
    for skew in (0.0, 3.0):
        skew_routing(model, skew)
        with bench_gpu.counting() as counts:
            out = model.denoise(cache, canvas, free)
        assert len(counts) == len(config.layers) and all(sum(layer) == 32 for layer in counts)
        assert out.entropy.isfinite().all()
        hits.append(Routing.of(counts).hit)
    assert hits[1] < hits[0] > 10


def stopgap(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["stopgap", *words])
    status = cli.main()
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["bench", "step", "--device", "cuda"], "no CUDA device can be used here"),
        (["bench", "step", "folder", "--device", "cuda"], "leave MODEL out"),
        (["bench", "step", "--small", "--bits", "5"], "choose 4, 8 or 16"),
        (["bench", "report", "nowhere.json"], "is no record"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_cannot_be_measured_is_said_in_one_line(
    words: list[str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = stopgap(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2 and why in said and said.count("\n") == 1


def test_a_record_is_shown_again_by_a_command(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, readme = tmp_path / "record.json", tmp_path / "README.md"
    path.write_text(json.dumps(record))
    readme.write_text(f"{bench_report.BEGIN}\n{bench_report.END}\n")
    words = ("bench", "report", str(path), "--readme", str(readme))
    assert stopgap(*words, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert bench_report.table(record) in readme.read_text()
    assert path.with_suffix(".svg").read_text() == bench_report.picture(record)


@pytest.mark.usefixtures("stub_daemon")
def test_keystrokes_are_timed_through_a_daemon_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_ENGINE_FACTORY", "stopgap.daemon.stub:load")
    said, record = keystroke.measure(3)
    assert len(record["ms"]) == 3 and record["device"] == "cpu"
    assert said.startswith("stub on cpu")
    assert re.search(
        r"3 requests, .* p50 \d+\.\d ms, p95 \d+\.\d ms, least \d+\.\d ms\n1\.0 steps .* 3 of 3 with a fill", said
    )
