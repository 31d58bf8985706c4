"""`stopgap model …`: import checkpoints, choose between models, look at them, check them, remove them.

Knows the terminal; where models stand is the shelf's, tensors are `infill`'s, which is imported when a command needs
it. An import may stop at any moment, and the same command goes on with it.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .oneshot import InputError
from .paths import expanded

if TYPE_CHECKING:
    from rich.table import Table

    from stopgap.infill.checkpoints import Source
    from stopgap.infill.importing import Report
    from stopgap.infill.packed import Manifest

    from .shelf import Shelved

app = typer.Typer(
    help="Import, choose and check models. `stopgap doctor` says which one this machine can run.", no_args_is_help=True
)

_EXAMPLE = "google/diffusiongemma-26B-A4B-it"

AdapterSide = Literal["decoder", "encoder"]


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help=f"A folder, a .gguf file, or a hub id like {_EXAMPLE} (…:Q4_K_M for one of several).")
    ],
    bits: Annotated[int, typer.Option(metavar="4|8|16", help="Bits of most weights; `stopgap doctor` advises.")] = 4,
    name: Annotated[str, typer.Option(help="What to call it; by default the source's name and the bits.")] = "",
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A LoRA fine-tune to merge into it: a folder with adapter_config.json."),
    ] = None,
    adapter_side: Annotated[
        AdapterSide | None,
        typer.Option(
            help="Needed if it was trained apart for decoder (fills) and encoder (reads), which share weights: "
            "whose to merge."
        ),
    ] = None,
    keep_download: Annotated[
        bool, typer.Option("--keep-download", help="Leave the checkpoint from the hub on the disk.")
    ] = False,
) -> None:
    """Import a DiffusionGemma checkpoint.

    Reads safetensors in bf16, FP8, NVFP4, INT8 or INT4 (compressed-tensors, Model Optimizer) or as MLX writes them, and
    GGUF files like Q8_0 and Q4_K_M with the original's tokenizer.json beside them. What comes out is packed for
    stopgap: the 26B takes 14.6 GB on the disk at 4 bits, 25.3 at 8, 50.5 at 16. A checkpoint from the hub needs its
    own size besides, until it is imported.

    Ctrl-C or a kill loses little: the same command goes on. The network is used for a hub id only.
    """
    from . import shelf

    if bits not in (4, 8, 16):
        raise InputError(f"--bits {bits}: 4, 8 or 16 was expected")
    if (local := expanded(source)).exists():
        source = str(local.absolute())  # the command that goes on must mean the same from any folder
    name = name or shelf.proposed_name(source, bits)
    out = shelf.place_for(name)
    if adapter is not None:
        adapter = expanded(adapter).absolute()
        if not (adapter / "adapter_config.json").is_file():
            raise InputError(f"{adapter} is no adapter: a folder with adapter_config.json was expected")
    elif adapter_side is not None:
        raise InputError(
            "--adapter-side says which side of an adapter to merge: name the adapter with --adapter FOLDER"
        )
    again = _command(source, bits, name, adapter, adapter_side)
    try:
        path, download = _located(source)
        opened = _opened(path, adapter, adapter_side)
        shelf.begin(name, again)
        report = _pack(opened, out, bits, source)
    except KeyboardInterrupt:
        _say(f"stopped; what is done is kept, and `{again}` goes on with it")
        raise
    if download is not None and not keep_download:
        import shutil

        shutil.rmtree(download, ignore_errors=True)
    _summarise(name, report)


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the models that are here; a star marks the one in use."""
    from .shelf import shelf

    models = shelf()
    if as_json:
        print(json.dumps([_facts(model) for model in models]))
        return
    from rich.console import Console

    Console(highlight=False).print(_table(models))


@app.command()
def use(name: Annotated[str, typer.Argument(help='As `stopgap model list` says, or "starter".')]) -> None:
    """Choose the model that fills are made with from now on."""
    from . import shelf

    print(shelf.use(name))


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="As `stopgap model list` says.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show one model and what rounding changed.

    Its shapes, bits and source; the round-trip error is how far the packed weights are from those that were imported.
    """
    from stopgap.infill.packed import is_packed, read_manifest
    from stopgap.infill.weights import read_config

    from .shelf import finished

    model = finished(name)
    config = read_config(model.folder)
    manifest = read_manifest(model.folder) if is_packed(model.folder) else None
    facts = _facts(model) | {
        "layers": len(config.layers),
        "hidden_size": config.hidden_size,
        "experts": config.num_experts,
        "experts_per_token": config.top_k_experts,
        "vocabulary": config.vocab_size,
        "canvas": config.canvas_length,
        "longest_prompt": config.max_positions,
        "round_trip": _round_trip(manifest),
    }
    if as_json:
        print(json.dumps(facts))
        return
    shown = facts | {"bits": model.bits or "not packed", "size": _gb(model.size), "imported": facts["imported"] or "-"}
    for key, value in shown.items():
        if key not in ("round_trip", "unfinished", "used"):
            print(f"{key.replace('_', ' '):18} {value}")
    errors = _round_trip(manifest)
    if errors:
        mean = errors.pop("mean")
        print(f"{'round-trip error':18} {mean:.2%} of a weight's own size on average, by root mean square; most in")
        for weight, error in errors.items():
            print(f"{'':18} {error:.2%}  {weight}")


@app.command()
def verify(name: Annotated[str, typer.Argument(help="As `stopgap model list` says.")]) -> None:
    """Read all of a model and compare checksums."""
    from stopgap.infill import packed
    from stopgap.infill.weights import read_config

    from .shelf import finished

    model = finished(name)
    if not packed.is_packed(model.folder):
        raise InputError(f"{name} is no packed model and has no checksums")
    began = time.monotonic()
    with _bar(f"reading {name}") as show:

        def progress(done: int, total: int) -> None:
            spent = time.monotonic() - began
            show(done, total, spent * (total - done) / done if done else None)

        packed.verify(model.folder, read_config(model.folder), progress)
    print(f"{name} is whole: {_gb(model.size)} in {time.monotonic() - began:.0f} s")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="As `stopgap model list` says.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model, or what an unfinished import has left."""
    from . import shelf

    model = shelf.find(name)
    shelf.check_removable(model)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"removing {name} needs --yes where nobody can be asked")
        typer.confirm(f"Delete {name} ({_gb(model.size)}, {model.folder})?", abort=True)
    print(f"removed {name}: {_gb(shelf.remove(name))} are free again")


def _command(source: str, bits: int, name: str, adapter: Path | None, side: AdapterSide | None) -> str:
    words = ["stopgap", "model", "import", source, "--bits", str(bits), "--name", name]
    words += ["--adapter", str(adapter)] if adapter else []
    return shlex.join([*words, *(["--adapter-side", side] if side else [])])


def _located(source: str) -> tuple[Path, Path | None]:
    """The path to import and, if it had to be fetched, the folder of the download. Raises `InputError`, `HubError`."""
    from . import hub, shelf

    if (path := Path(source)).exists():
        return path, None
    remote = hub.Remote.parse(source)
    if remote is None:
        raise InputError(f"there is no {source}: name a folder, a .gguf file or a hub id like {_EXAMPLE}")
    folder = shelf.downloads_dir() / source.replace("/", "--").replace(":", "--")
    _say(f"fetching {source} from huggingface.co into {folder}")
    return hub.fetch(remote, folder, quiet=not sys.stderr.isatty()), folder


def _opened(path: Path, adapter: Path | None, side: AdapterSide | None) -> Source:
    """The source, with a word on what is left out of it."""
    from stopgap.infill.checkpoints import describe_skipped, open_source

    opened = open_source(path, adapter, adapter_side=side)
    if left_out := describe_skipped(opened.skipped):
        _say(f"left out: {left_out}")
    return opened


def _pack(source: Source, out: Path, bits: int, origin: str) -> Report:
    """Import it, with a bar."""
    from stopgap.infill.importing import Progress, import_model

    with _bar(f"packing {out.name}") as show:

        def progress(at: Progress) -> None:
            show(at.done, at.total, at.left)

        return import_model(
            source,
            out,
            bits,  # type: ignore[arg-type]
            clock=time.monotonic,
            progress=progress,
            origin=origin,
        )


def _summarise(name: str, report: Report) -> None:
    from stopgap.infill.checkpoints import describe_skipped

    manifest = report.manifest
    errors = _round_trip(manifest)
    lines = [f"{name}: {_gb(manifest.nbytes)} at {manifest.bits} bits from {manifest.source}, {_span(report.seconds)}"]
    if report.resumed:
        lines.append(f"{report.resumed / report.total:.0%} of it was there from before")
    if left_out := describe_skipped(report.skipped):
        lines.append(f"left out: {left_out}")
    if errors:
        lines.append(f"rounding changed the weights by {errors['mean']:.2%} on average (`stopgap model info {name}`)")
    print("\n".join([*lines, f"`stopgap model use {name}` makes it the one that fills"]))


def _round_trip(manifest: Manifest | None) -> dict[str, float]:
    """The mean relative error of the rounded weights, and the five worst by name; empty if nothing was rounded."""
    if manifest is None:
        return {}
    errors = {name: record.error for name, record in manifest.tensors.items() if record.kind != "bf16"}
    if not errors:
        return {}
    worst = sorted(errors, key=lambda name: -errors[name])[:5]
    return {"mean": sum(errors.values()) / len(errors)} | {name: errors[name] for name in worst}


def _facts(model: Shelved) -> dict[str, Any]:
    imported = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.imported)) if model.imported else None
    return {
        "name": model.name,
        "used": model.used,
        "bits": model.bits,
        "size": model.size,
        "imported": imported,
        "source": model.source,
        "folder": str(model.folder),
        "unfinished": model.command or None,
    }


def _table(models: list[Shelved]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "model", "bits", "size", "imported", "from")
    for model in models:
        facts = _facts(model)
        origin = f"unfinished: {model.command}" if model.command else model.source
        cells = ("*" if model.used else "", model.name, str(model.bits or "-"), _gb(model.size))
        table.add_row(*map(Text, (*cells, facts["imported"] or "-", origin)))
    return table


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """A bar with the time left on stderr; where that is no terminal, a line for each tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    told = -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, left="")

        def show(done: int, total: int, left: float | None) -> None:
            nonlocal told
            ahead = f"{_span(left)} left" if left is not None else ""
            bar.update(task, completed=done, total=total, left=ahead)
            if not console.is_terminal and (tenth := 10 * done // max(total, 1)) > told:
                told = tenth
                _say(f"{what}: {tenth * 10} %{', ' if ahead else ''}{ahead}")

        yield show


def _say(line: str) -> None:
    print(f"stopgap: {line}", file=sys.stderr, flush=True)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _span(seconds: float) -> str:
    """A time to wait, to about two digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
