"""Draws examples/demo.svg: what `make demo` prints, from a real run. Usage: python -P examples/picture.py"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent


def main() -> None:
    command = ["fill", "examples/inventory.py", "--marker", "# fill here"]
    stopgap = Path(sys.executable).with_name("stopgap")
    shown = subprocess.run(
        [str(stopgap), *command],
        cwd=HERE.parent,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "84"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    console = Console(record=True, width=84, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    console.print(Text.from_ansi(shown.rstrip()))
    picture = console.export_svg(title="stopgap", unique_id="demo")
    # The exporter links a web font; a picture in a repository should load nothing.
    picture = re.sub(r"<!--.*?-->", "", picture, flags=re.DOTALL)
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    (HERE / "demo.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
