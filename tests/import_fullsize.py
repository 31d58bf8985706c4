"""Import a made-up DiffusionGemma of full size and report time and peak memory: `python tests/import_fullsize.py`.

The checkpoint has the published shapes (1.6 GB a layer in bf16, 51.7 GB with all thirty) but takes little disk: only
`--real` of every tensor's bytes are written, random weights, and the rest are holes, which read as zeros. Weights are
rounded the same way whatever they are; reading holes is quicker than reading a disk. The import runs in a process of
its own whose peak memory the system reports. Everything is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stopgap.infill import importing
from stopgap.infill.checkpoints import open_source
from stopgap.infill.importing import Progress, import_model
from stopgap.infill.model_config import ModelConfig, expected_shapes
from stopgap.infill.weights import INDEX

LAYERS = 30
CONFIG = Path(importing.__file__).parent / "data" / "diffusiongemma-26b.json"
BLOCK = 1 << 24
"""Random weights made, once; every tensor begins at another one of them."""


def published_config(layers: int = LAYERS) -> dict[str, Any]:
    """config.json of DiffusionGemma 26B-A4B, as its model card and three ports give it."""
    config: dict[str, Any] = json.loads(CONFIG.read_text(encoding="utf-8"))
    del config["source"]
    text = config["text_config"]
    return config | {"text_config": text | {"num_hidden_layers": layers, "layer_types": text["layer_types"][:layers]}}


def write_checkpoint(folder: Path, layers: int, real: float) -> int:
    """Write shards of about 5 GB with their index; returns the bytes that the tensors have."""
    config = published_config(layers)
    (folder / "config.json").write_text(json.dumps(config))
    noise = (torch.randn(BLOCK) * 0.02).bfloat16().view(torch.uint8).numpy().data
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = 0
    for name, shape in expected_shapes(ModelConfig.from_dict(config)).items():
        if room > 5_000_000_000:
            shards.append([])
            room = 0
        shards[-1].append((name, shape))
        room += 2 * math.prod(shape)
    index, whole = {}, 0
    for number, shard in enumerate(shards):
        path = folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        header, at = dict[str, Any](), 0
        for name, shape in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at := at + 2 * math.prod(shape)]}
            index[name] = path.name
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            start = file.tell()
            for turn, (name, shape) in enumerate(shard):
                size = 2 * math.prod(shape)
                # What is small is real, so that no norm is nothing but zeros.
                wanted = size if size < 1 << 20 else int(size * real) & ~1
                file.seek(start + header[name]["data_offsets"][0])
                while wanted > 0:
                    offset = 2 * (turn * 7919 % 4096)
                    piece = noise[offset : offset + wanted]
                    wanted -= file.write(piece)
            file.truncate(start + at)
        whole += at
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return whole


def run_import(source: Path, out: Path, bits: int) -> None:
    """The child process: import, and print one JSON line."""
    torch.set_num_threads(1)
    bar = sys.stderr.isatty()

    def show(at: Progress) -> None:
        if bar:
            print(f"\r{at.done / at.total:6.1%}  {at.left:7.0f} s left  {at.name:40}", end="", file=sys.stderr)

    busy = time.process_time()
    report = import_model(open_source(source), out, bits, clock=time.monotonic, progress=show)  # type: ignore[arg-type]
    facts = {"weights": report.total, "seconds": report.seconds, "busy": time.process_time() - busy}
    print(json.dumps(facts | {"packed": report.manifest.nbytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--real", type=float, default=0.05, help="share of each tensor that is not a hole")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_import(*options.child, options.bits)
        return
    import resource  # not on Windows

    folder = Path(tempfile.mkdtemp(prefix="stopgap-fullsize-", dir=options.folder))
    try:
        (folder / "source").mkdir()
        whole = write_checkpoint(folder / "source", options.layers, options.real)
        used = sum(512 * path.stat().st_blocks for path in (folder / "source").iterdir())
        print(f"source: {whole / 1e9:.1f} GB of tensors, {used / 1e9:.1f} GB on the disk", flush=True)
        words = [sys.executable, "-P", __file__, "--bits", str(options.bits), "--child"]
        done = subprocess.run([*words, folder / "source", folder / "out"], stdout=subprocess.PIPE, check=True)
        facts = json.loads(done.stdout)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        rate = facts["weights"] / facts["busy"]
        everything = sum(
            math.prod(shape) for shape in expected_shapes(ModelConfig.from_dict(published_config())).values()
        )
        print(
            f"import: {facts['weights'] / 1e9:.2f} G weights to {facts['packed'] / 1e9:.2f} GB at {options.bits} bits, "
            f"{facts['seconds']:.0f} s, {facts['busy']:.0f} s of one core ({rate / 1e6:.0f} M weights/s), "
            f"peak memory {peak / 1e9:.2f} GB"
        )
        if options.layers < LAYERS:
            print(f"extrapolated to all {LAYERS} layers: {everything / rate:.0f} s of one core")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
