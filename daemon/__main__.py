"""Where the `stopgap` command begins: a Ctrl-C while it is still being imported ends it without a traceback.

Knows nothing of the commands; `cli` does.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Imports the command line, which takes a tenth of a second and more, and runs it; the exit status."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not if whoever started us ignores it
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
