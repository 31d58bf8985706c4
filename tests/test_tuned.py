"""Block sizes measured on a kind of GPU are used there and reported; what is no table is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stopgap.kernels import tuned
from stopgap.kernels.path import SWITCH, PathError
from stopgap.kernels.tuned import ANY, Blocks, Tuned

CPU = torch.device("cpu")
PRODUCT, MIXTURE = Blocks(16, 64, 2, 2, 2), Blocks(16, 128, 1, 2, 3)
FAKE = Tuned(None, {(16, 4096): PRODUCT, (ANY, ANY): PRODUCT._replace(stages=5)}, {(4, False): MIXTURE})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.of.cache_clear()
    yield tmp_path
    tuned.of.cache_clear()


def test_what_is_written_is_read_again(folder: Path) -> None:
    path = folder / "a.toml"
    tuned.write(path, FAKE, "Found somewhere.")
    assert tuned.read(path) == Tuned(path, FAKE.products, FAKE.experts)
    assert path.read_text().startswith("# Found somewhere.\n\n[[products]]\nup_to_rows = 16\nup_to_outputs = 4096\n")


def test_the_files_that_come_with_the_kernels_can_be_read() -> None:
    for path in sorted(tuned.FOLDER.glob("*.toml")):
        assert str(tuned.read(path)) == f"block sizes of {path.name}"


def test_a_kind_of_gpu_has_one_file() -> None:
    assert tuned.file_name("NVIDIA GeForce RTX 4090", "89") == "nvidia-geforce-rtx-4090-sm89.toml"
    assert tuned.file_name(*tuned.kind(CPU)) == "interpreter.toml"


def test_where_nothing_was_measured_the_built_in_sizes_hold(folder: Path) -> None:
    assert str(tuned.of(CPU)) == "built-in block sizes"
    tuned.write(folder / "interpreter.toml", FAKE, "")
    assert str(tuned.of(CPU)) == "built-in block sizes", "it is read once"


@pytest.mark.filterwarnings("error")
def test_the_kernels_are_cut_as_the_file_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    from stopgap.kernels import experts_triton, matmul_triton
    from stopgap.kernels.experts import experts
    from stopgap.kernels.matmul import matmul, reference
    from stopgap.kernels.quantised import Int4Groups, Int8Rows

    tuned.write(folder / "interpreter.toml", FAKE, "")
    assert matmul_triton.blocks(4, 64, CPU) == PRODUCT
    assert matmul_triton.blocks(500, 9000, CPU).stages == 5
    assert matmul_triton.blocks(4, 9000, CPU) == matmul_triton.blocks(4, 9000), "no entry"
    assert experts_triton.cut(8, False, CPU) == experts_triton.CUTS[8, False], "no entry"

    monkeypatch.setenv(SWITCH, "triton")
    assert tuned.described(CPU) == "triton (block sizes of interpreter.toml)"
    grids: dict[str, tuple[int, ...]] = {}
    for module, name in ((matmul_triton, "matmul_kernel"), (experts_triton, "down_kernel")):
        kernel = getattr(module, name)

        class Noticed:
            def __init__(self, kernel: object = kernel, name: str = name) -> None:
                self.kernel, self.name = kernel, name

            def __getitem__(self, grid: tuple[int, ...]) -> object:
                grids[self.name] = grid
                return self.kernel[grid]  # type: ignore[index]

        monkeypatch.setattr(module, name, Noticed())
    x, weight = torch.randn(4, 64), Int8Rows.of(torch.randn(130, 64))
    torch.testing.assert_close(matmul(x, weight), reference(x, weight), atol=1e-4, rtol=1e-4)
    gate_up, down = (Int4Groups.of(torch.randn(2, size, 64) / 8) for size in (128, 64))
    assert experts(x, torch.randn(4, 2), gate_up, down, 1).isfinite().all()
    assert grids == {"matmul_kernel": (1, 3), "down_kernel": (2, 1)}


GOOD = "rows = 16\noutputs = 64\nslices = 1\nwarps = 4\nstages = 3\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[products]", "Expected ']]'"),
        ("[[product]]\n" + GOOD, "unknown: product"),
        ("products = 3", "not iterable"),
        ("products = [3]", "no attribute"),
        ("[[experts]]\nbits = 4\n" + GOOD, "'full' is missing"),
        ("[[products]]\nrows = 16", "an entry has rows, not rows, outputs, slices, warps, stages"),
        ("[[products]]\n" + GOOD + "more = 1", "an entry has more, outputs"),
        ("[[products]]\n" + GOOD.replace("64", "48"), "outputs = 48 is no power of two"),
        ("[[products]]\n" + GOOD.replace("64", "true"), "outputs = True is no power of two"),
        ("[[products]]\n" + GOOD.replace("64", "8"), "cannot run: rows and outputs from 16 on"),
        ("[[products]]\n" + GOOD.replace("slices = 1", "slices = 2"), "one, or one for each warp"),
        ("[[experts]]\nbits = 4\nfull = true\n" + GOOD.replace("16", "32"), "experts have 16 rows, not 32"),
        ("\xff", "can't decode"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(text: str, why: str, folder: Path) -> None:
    path = folder / "interpreter.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PathError) as raised:
        tuned.of(CPU)
    said = str(raised.value)
    assert why in said and said.startswith(f"block sizes in {path}: ") and "\n" not in said
    assert said.endswith("; delete the file, or make it again with `make gpu`")
