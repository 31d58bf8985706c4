"""Every Triton kernel compiles for every GPU we name, in the sizes of the 26B, within a consumer card's shared memory.

No GPU is needed: Triton brings its own assembler. It must not run in the interpreter, so a process of its own compiles
all of one architecture, this file as a script; what it made is kept in pytest's cache.
A kernel is one entry of CASES.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ALWAYS, SOMETIMES = (80, 89, 90, 120), (86, 100)
"""Compute capabilities: A100, 4090, H200, 5090; 3090, B200. What is new in those two is in the neighbours too."""
LIMIT = 101_376
"""Bytes of shared memory that one program may have on sm_86, sm_89 and sm_120; the others have more."""

BF16, F16, F32, I64, I32, U8, I8 = "*bf16", "*fp16", "*fp32", "*i64", "*i32", "*u8", "*i8"
SIXTEENS = "i32:16"
"""A number that Triton finds to be a multiple of 16 when it is called, so that rows of that many can be copied fast."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel in one size."""

    module: str
    """Of `stopgap.kernels`."""
    kernel: str
    types: Mapping[str, str]
    """Of the arguments that are no constants; pointers are taken to be multiples of 16, as torch's are."""
    constants: Mapping[str, int | bool]
    warps: int
    stages: int = 3
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.kernel}-{self.note}" if self.note else self.kernel


WIDTH, HIDDEN, EXPERTS, TOP_K = 2816, 704, 128, 8
MATRICES = {"qkv": (8192, WIDTH), "out": (WIDTH, 4096), "down": (WIDTH, 2112)}
"""[out, in]. The other matrices of the 26B are cut in the same ways: 9,216, 4,224 or 262,144 outputs, 8,192 inputs."""


def stored(bits: int) -> dict[str, str]:
    return {"codes": U8 if bits == 4 else I8, "scale": BF16 if bits == 4 else F32}


def strides(bits: int, outputs: int, inputs: int) -> dict[str, int]:
    groups = inputs // 64 if bits == 4 else 1
    return {"BY_EXPERT": outputs * groups, "BY_ROW": groups, "BY_GROUP": int(bits == 4)}


def matmuls() -> Iterator[Case]:
    from stopgap.kernels.matmul_triton import TABLE, blocks

    every = [(8, name, rows) for name in MATRICES for rows in sorted({min(most, 256) for most, _, _ in TABLE})]
    for bits, name, rows in [*every, (4, "qkv", 32), (4, "qkv", 256)]:
        outputs, inputs = MATRICES[name]
        cut, by = blocks(rows, outputs), strides(bits, outputs, inputs)
        constants = {"IN": inputs, "OUT": outputs, "BY_ROW": by["BY_ROW"], "BY_GROUP": by["BY_GROUP"], "BITS": bits}
        constants |= {"ROWS": cut.rows, "OUTPUTS": cut.outputs, "SLICES": cut.slices, "STAGES": cut.stages}
        types = {"x": BF16, **stored(bits), "out": BF16, "count": "i32"}
        note = f"int{bits}-{name}-{rows}"
        yield Case("matmul_triton", "matmul_kernel", types, constants | {"INTERPRETED": False}, cut.warps, note=note)


def mixtures() -> Iterator[Case]:
    from stopgap.kernels.experts_triton import CHUNK, CUTS, LEAST, STRIP, TILE

    module = "experts_triton"
    choice = {"scores": BF16, "chosen": I32, "weights": F32}
    yield Case(module, "choose_kernel", choice, {"E": EXPERTS, "TOP_K": TOP_K}, 1)
    grouping = {"chosen": I32, "order": I32, "table": I32, "pairs": "i32"}
    for chunk, warps in ((64, 1), (256, 4), (CHUNK, 4)):
        yield Case(module, "group_kernel", grouping, {"CHUNK": chunk, "TILE": TILE}, warps, note=str(chunk))
    for (bits, full), cut in CUTS.items():
        note = f"int{bits}-{'full' if full else 'few'}"
        common = {"BITS": bits, "ROWS": TILE, "SLICES": cut.slices, "STAGES": cut.stages, "INTERPRETED": False}
        types = {"x": BF16, "order": I32, "table": I32, **stored(bits), "between": F16, "units": F32}
        columns = max(LEAST, cut.outputs // 2)
        sizes = {"TOP_K": TOP_K, "IN": WIDTH, "HIDDEN": HIDDEN, "COLUMNS": columns, "UNIT": columns}
        constants = common | sizes | strides(bits, 2 * HIDDEN, WIDTH)
        yield Case(module, "gate_up_kernel", types, constants, cut.warps, note=note)
        types = {"between": F16, "units": F32, "order": I32, "table": I32, "weights": F32, "returned": F32}
        types |= stored(bits)
        sizes = {"HIDDEN": HIDDEN, "OUT": WIDTH, "OUTPUTS": cut.outputs, "UNIT": columns}
        constants = common | sizes | strides(bits, WIDTH, HIDDEN)
        yield Case(module, "down_kernel", types, constants, cut.warps, note=note)
    sizes = {"TOP_K": TOP_K, "OUT": WIDTH, "STRIP": STRIP, "INTERPRETED": False}
    yield Case(module, "add_kernel", {"returned": F32, "out": BF16}, sizes, 4)


def heads() -> Iterator[Case]:
    from stopgap.kernels.head_triton import DRAWN_NOISE, STRIP, TILE, blocks

    module, vocabulary = "head_triton", 262_144
    sizes = {"N": SIXTEENS, "V": SIXTEENS}
    masks = {"banned": U8, "which": I32, "masks": U8, "temperature": F32, "softcap": "fp32"}
    per_tile = {"largest": F32, "total": F32, "slope": F32, "best": I32, "noisy": F32, "noisy_best": I32}
    flags: dict[str, int | bool] = {"IS_BANNED": True, "IS_HELD": True}
    for rows in (16, 32, 64, 128, 256):
        for int8 in (False, True):
            cut, note = blocks(rows, int8), f"{'int8' if int8 else 'bf16'}-{rows}"
            types = {"hidden": BF16, "embedding": I8 if int8 else BF16, "scale": F32, "noise": F32, "raw": BF16}
            constants = {"D": WIDTH, "INT8": int8, "ROUND": True, "NOISE": DRAWN_NOISE, "UPCAST": False, "TILE": TILE}
            constants |= flags | {"BLOCK_N": cut.rows, "BLOCK_D": cut.inputs}
            types |= masks | per_tile | sizes | {"tiles": SIXTEENS}
            yield Case(module, "logits_kernel", types, constants, cut.warps, cut.stages, note)
        types = {"weights": F16, "codes": I8, "parts": F32, "W": SIXTEENS, "span": SIXTEENS} | sizes
        constants = {"D": WIDTH, "UPCAST": False, "BLOCK_N": cut.rows, "BLOCK_V": cut.inputs, "TILE": TILE}
        yield Case(module, "expect_kernel", types, constants, cut.warps, cut.stages, str(rows))
    read = {"argmax": I64, "sample": I64, "entropy": F32, "logprob": F32, "logsumexp": F32}
    types = per_tile | masks | read | sizes | {"raw": BF16, "seed": I64, "step": I64, "tiles": SIXTEENS}
    constants = flags | {"NOISE": DRAWN_NOISE, "BLOCK_N": 1, "TILES": vocabulary // TILE, "TILE": TILE}
    yield Case(module, "merge_kernel", types, constants, 8)
    for fold in (False, True):
        types = masks | sizes | {"raw": BF16, "out": F16 if fold else BF16, "logsumexp": F32, "scale": F32, "unit": F32}
        constants = flags | {"ROUND": True, "FOLD": fold, "BLOCK_N": 1, "STRIP": STRIP}
        types |= {"W": SIXTEENS}
        yield Case(module, "probabilities_kernel", types, constants, 8, note="int8" if fold else "bf16")


def small() -> Iterator[Case]:
    """What lies between the products of a layer."""
    from stopgap.kernels.matmul_triton import TABLE, blocks

    for bits, rows in [*((8, rows) for rows in sorted({min(most, 256) for most, _, _ in TABLE})), (4, 32), (4, 256)]:
        hidden, cut = 2112, blocks(rows, 4224)
        by = strides(bits, 2 * hidden, WIDTH)
        constants = {"IN": WIDTH, "HIDDEN": hidden, "BY_ROW": by["BY_ROW"], "BY_GROUP": by["BY_GROUP"], "BITS": bits}
        constants |= {"ROWS": cut.rows, "COLUMNS": cut.outputs // 2, "SLICES": cut.slices, "STAGES": cut.stages}
        types = {"x": BF16, **stored(bits), "out": BF16, "count": "i32"}
        constants |= {"INTERPRETED": False}
        yield Case("gated_triton", "gated_kernel", types, constants, cut.warps, note=f"int{bits}-{rows}")
    sums = ("x", "first", "first_weight", "second", "second_weight", "weight", "following", "total", "normed")
    types = dict.fromkeys(sums, BF16) | {"scale": "fp32", "eps": "fp32"}
    for note, two, followed in (("attention", False, False), ("mlp", True, False), ("last", True, True)):
        constants = {"D": WIDTH, "WIDE": 4096, "TWO": two, "FOLLOWED": followed, "INTERPRETED": False}
        yield Case("residual_triton", "residual_kernel", types, constants, 8, note=note)


def attentions() -> Iterator[Case]:
    from stopgap.kernels.attention_triton import blocks

    for note, groups, heads, width, own in (("sliding", 2, 8, 256, 1), ("full", 8, 2, 512, 0)):
        sides = ("key", "value")
        far = {f"{side}_by_{axis}": SIXTEENS for side in sides for axis in ("head", "token")}
        near = {f"{side}_by_place": 1 for side in sides}
        names = ("heads", "norms", "cos", "sin", "queries", "keys", "values")
        types = dict.fromkeys(names, BF16) | far | {"eps": "fp32"}
        sizes = {"UNITS": groups + 1 + own, "GROUPS": groups, "HEADS": heads, "WIDTH": width, "INTERPRETED": False}
        yield Case("heads_triton", "heads_kernel", types, sizes | near, 4, note=note)
        cut = blocks(width)
        types = dict.fromkeys(("queries", "keys", "values", "mask", "out"), BF16) | far
        types |= {"parts": F32, "tops": F32, "sums": F32, "rows": "i32", "length": "i32", "span": "i32"}
        sizes = {"HEADS": heads, "WIDTH": width, "GROUPS": groups, "INTERPRETED": False} | near
        sizes |= {"ROWS": cut.rows, "KEYS": cut.keys, "PART": cut.part, "STAGES": cut.stages}
        for masked, whole in ((True, False), (True, True), (False, False)):
            constants: dict[str, int | bool] = sizes | {"MASKED": masked, "WHOLE": whole}
            own_note = f"{note}{'' if masked else '-unmasked'}{'-whole' if whole else ''}"
            by_row = {"mask_by_row": SIXTEENS} if masked else {}
            constants |= {} if masked else {"mask_by_row": 0}
            yield Case(
                "attention_triton", "attention_kernel", types | by_row, constants, cut.warps, cut.stages, own_note
            )
        types = {"parts": F32, "tops": F32, "sums": F32, "out": BF16, "rows": "i32", "spans": "i32"}
        sizes = {"HEADS": heads, "WIDTH": width, "INTERPRETED": False}
        yield Case("attention_triton", "combine_kernel", types, sizes, 2, note=note)


CASES = (matmuls, mixtures, heads, small, attentions)


def cases() -> list[Case]:
    """Without those that are the same program under another name."""
    found = {}
    for case in (case for group in CASES for case in group()):
        found.setdefault((case.kernel, str(case.types), str(case.constants), case.warps, case.stages), case)
    return list(found.values())


def shared_memory(case: Case, capability: int) -> int:
    """Compile; bytes of shared memory of one program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(f"stopgap.kernels.{case.module}"), case.kernel)
    signature = {name: case.types.get(name, "constexpr").removesuffix(":16") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    constants = {places[name]: value for name, value in case.constants.items()}
    wide = [name for name, kind in case.types.items() if kind.startswith("*") or kind.endswith(":16")]
    aligned = {places[name]: [["tt.divisibility", 16]] for name in wide}
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]
    return int(made.metadata.shared)


@cache
def compiled(capability: int, folder: Path) -> dict[str, int | str]:
    """Of every case its shared memory in bytes, or the end of what the compiler said."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-P", __file__, str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, int | str] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(1200)  # the first time; a busy machine took four minutes for one of them
@pytest.mark.parametrize(
    "capability",
    [*ALWAYS, *(pytest.param(one, marks=pytest.mark.slow) for one in SOMETIMES)],
    ids=lambda cc: f"sm_{cc}",
)
def test_every_kernel_compiles_within_the_shared_memory_of_a_consumer_card(
    capability: int, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    assert request.config.cache is not None
    found = compiled(capability, request.config.cache.mkdir("triton"))
    assert len(found) > 20
    for name, shared in found.items():
        print(f"sm_{capability} {name}: {shared}")
    wrong = {name: shared for name, shared in found.items() if not isinstance(shared, int) or shared > LIMIT}
    assert not wrong


if __name__ == "__main__":
    results: dict[str, int | str] = {}
    for each in cases():
        try:
            results[each.name] = shared_memory(each, int(sys.argv[1]))
        except Exception as error:
            results[each.name] = f"{type(error).__name__}: {str(error)[-1500:]}"
    print(json.dumps(results))
