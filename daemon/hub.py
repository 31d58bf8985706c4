"""Checkpoints from huggingface.co: which files a model needs, and getting them. Only `stopgap model import` does.

Everywhere else the hub is switched off (HF_HUB_OFFLINE), so that no library may look for anything there. Knows no
tensors and no shelf.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(:(?P<variant>[\w.-]+))?")
_SPARE = 1 << 30
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]
SMALL = ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]


class HubError(Exception):
    """A checkpoint that cannot be fetched; `str()` is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class Remote:
    """`owner/name`, or `owner/name:VARIANT` where a repository holds one GGUF file per variant, like :Q4_K_M."""

    repo: str
    variant: str = ""

    @staticmethod
    def parse(text: str) -> Remote | None:
        """None if `text` cannot be a hub id."""
        found = _ID.fullmatch(text)
        return Remote(found["repo"], found["variant"] or "") if found else None


def forbid() -> None:
    """Let no library of this process, nor of those it starts, reach for the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def fetch(remote: Remote, folder: Path, *, quiet: bool) -> Path:
    """Download what an import needs into `folder`; what is already there whole is not fetched again.

    Returns the path to import. The hub's own bars show the progress on stderr, unless `quiet`. Raises `HubError`.
    """
    hub = _library()
    try:
        names = [one.rfilename for one in hub.HfApi().model_info(remote.repo, timeout=20).siblings or ()]
        patterns, result = choose(remote, names)
        listed = hub.snapshot_download(remote.repo, local_dir=folder, allow_patterns=patterns, dry_run=True)
        _check_disk(folder, sum(one.file_size for one in listed if one.will_download))
        if quiet:
            hub.utils.disable_progress_bars()
        hub.snapshot_download(remote.repo, local_dir=folder, allow_patterns=patterns)
    except HubError:
        raise
    except Exception as error:
        raise HubError(explain(error, remote.repo)) from None
    return folder / result if result else folder


def choose(remote: Remote, names: Sequence[str]) -> tuple[list[str], str]:
    """Patterns of the files to fetch and the one file to import ("" for the whole folder). Raises `HubError`."""
    ggufs = sorted(name for name in names if name.endswith(".gguf") and "mmproj" not in name)
    if any(name.endswith(".safetensors") for name in names) and not remote.variant:
        return WANTED, ""
    wanted = [name for name in ggufs if remote.variant.lower() in name.lower()]
    if len(wanted) == 1:
        return [wanted[0], *SMALL], wanted[0]
    if not ggufs:
        raise HubError(f"{remote.repo} holds neither safetensors nor GGUF files: it is no model that can be imported")
    variants = ", ".join(name.removesuffix(".gguf").rpartition("-")[2] for name in ggufs[:12])
    raise HubError(f"{remote.repo} holds {len(ggufs)} GGUF files; name one: {remote.repo}:VARIANT with {variants}")


def explain(error: Exception, repo: str) -> str:
    """One line for whatever the hub's library raises."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"{repo} wants its terms accepted: do that on https://huggingface.co/{repo}, then `hf auth login`"
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return f"there is no model {repo} on huggingface.co, or it is private: check the name, or `hf auth login`"
    if kind == "OfflineModeIsEnabled":
        return "the hub is switched off by HF_HUB_OFFLINE: unset it, or name a folder that is already here"
    if isinstance(error, OSError) and error.errno == 28:
        return "the disk is full; free some space and run the same command, it goes on from here"
    told = (str(error).strip().splitlines() or [kind])[0][:200]
    return (
        f"{repo} cannot be fetched ({told}); check the network and run the same command, it goes on from here, "
        "or name a folder that is already here"
    )


def _check_disk(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise HubError(
            f"the download needs {needed / 1e9:.1f} GB and the disk of {folder} has {free / 1e9:.1f} GB free; "
            "free some, or set STOPGAP_DATA_DIR to another disk"
        )


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError("downloads need huggingface_hub: pip install huggingface_hub, or name a folder") from None
    return huggingface_hub
