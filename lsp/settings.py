"""Every setting of the language server: its default, its bounds and its meaning are stated here only.

Settings come as `initializationOptions` and as `workspace/didChangeConfiguration` (bare, or under the key
`stopgap`); names are camelCase there. What the daemon and the model do is set in the daemon's own file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast, get_args, get_origin, get_type_hints

SECRETS = (
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.asc",
    "*.gpg",
    "*.age",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    ".pgpass",
    ".npmrc",
    ".pypirc",
    ".htpasswd",
    ".git-credentials",
    "*.tfvars",
    "*.tfstate",
    "secrets.*",
    "credentials.*",
    "**/.ssh/**",
    "**/.aws/**",
    "**/.gnupg/**",
    "**/.kube/**",
)
"""Files that are never read, as context or otherwise; patterns as in .gitignore. Not a setting."""


@dataclass(frozen=True, slots=True)
class Settings:
    enabled: bool = True
    """False: no ghost text at all; code actions stay."""
    automatic: bool = True
    """False: ghost text only when asked for; typing then sends nothing to the daemon."""
    disabled_languages: tuple[str, ...] = ()
    """Language ids of the client without ghost text, e.g. "markdown"."""
    disabled_globs: tuple[str, ...] = ()
    """Files without ghost text and actions and never used as context; patterns as in .gitignore."""
    respect_gitignore: bool = True
    """Treat files that git ignores like `disabledGlobs`."""
    in_comments: bool = False
    """Automatic ghost text inside comments."""
    in_strings: bool = False
    """Automatic ghost text inside strings."""
    show_threshold: float = 0.2
    """Automatic ghost text is shown from this show score on (0 shows all, 1 nothing).

    By `stopgap eval typing` on the starter (300 pauses): shows at 41 % of the pauses, and 25 % of what is shown is
    what was typed; from 0.51 on 6 %, of which every sixth fill is right as a whole. No threshold gains in characters
    right minus wrong (LOG.md), so this one only keeps the least sure third quiet."""
    candidates: int = 3
    """How many different texts to offer when asked for by hand (1 to 8)."""
    budget_ms: float = 600.0
    """How long the model may work on automatic ghost text; the best checked text by then is shown."""
    invoked_budget_ms: float = 3000.0
    """The same when asked for by hand."""
    rewrite_budget_ms: float = 20000.0
    """The same for code actions."""
    prepare_next: bool = True
    """Fill the place behind the ghost text shown while it is being read."""
    completion: str = "auto"
    """Offer fills in the completion menu: "auto" (clients without inline completion), "always", "never"."""
    context_files: int = 4
    """How many other workspace files may be read for one request (0 to 16)."""
    context_bytes: int = 6000
    """How much of them together, in bytes."""
    context_ms: float = 20.0
    """How long collecting them may take."""
    allow_unchecked: bool = False
    """Show fills in languages without a grammar, where nothing can check them."""
    confirm_rewrites: bool = True
    """Ask the editor to show a rewrite before it is applied, where it can."""
    status: bool = False
    """The client understands the notification `stopgap/status`."""
    drafts: bool = False
    """The client understands the notification `stopgap/draft`; rewrites then send drafts as they settle."""
    input: bool = False
    """The client understands the request `stopgap/input`; "Rewrite with instruction…" then asks."""

    unknown: tuple[str, ...] = field(default=(), repr=False)
    """One line for every entry that was not understood; shown to the user once, never fatal."""


_BOUNDS: dict[str, tuple[float, float]] = {
    "show_threshold": (0.0, 1.0),
    "candidates": (1, 8),
    "budget_ms": (20.0, 60_000.0),
    "invoked_budget_ms": (20.0, 600_000.0),
    "rewrite_budget_ms": (20.0, 600_000.0),
    "context_files": (0, 16),
    "context_bytes": (0, 100_000),
    "context_ms": (0.0, 1000.0),
}
_CHOICES = {"completion": ("auto", "always", "never")}


def merged(settings: Settings, given: object) -> Settings:
    """`settings` with what the client gave; a wrong entry changes nothing and adds a line to `unknown`."""
    if not isinstance(given, Mapping):
        return replace(settings, unknown=())
    given = given.get("stopgap", given)
    if not isinstance(given, Mapping):
        return replace(settings, unknown=("stopgap: an object with settings was expected",))
    kinds = get_type_hints(Settings)
    names = {camel(item.name): item.name for item in fields(Settings) if item.name != "unknown"}
    values: dict[str, Any] = {}
    complaints: list[str] = []
    for key, value in given.items():
        name = names.get(str(key))
        if name is None:
            near = difflib.get_close_matches(str(key), names, 1)
            complaints.append(f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif value is not None:
            try:
                values[name] = _read(name, kinds[name], value)
            except ValueError as error:
                complaints.append(f"setting {key!r}: {error}")
    return replace(settings, **values, unknown=tuple(complaints))


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _read(name: str, kind: Any, value: object) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, get_args(kind)[0]) for item in value):
            raise ValueError("a list of strings was expected")
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} was expected")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"one of {', '.join(_CHOICES[name])} was expected")
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        if not low <= cast(float, value) <= high:
            raise ValueError(f"a number from {low:g} to {high:g} was expected")
    return value
