"""The tap between an editor and its server, around a child that answers one request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHILD = "import sys; size = int(sys.argv[1]); sys.stdin.buffer.read(size); sys.stdout.buffer.write({answer!r})"


def framed(**message: object) -> bytes:
    body = json.dumps(message).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def test_bytes_go_through_unchanged_and_completion_requests_are_noted(tmp_path: Path) -> None:
    asked = framed(method="textDocument/didOpen", params={"text": "ä"}) + framed(
        id=7, method="textDocument/inlineCompletion"
    )
    answer = framed(method="window/logMessage") + framed(id=6, result=[]) + framed(id=7, result=["one", "two"])
    command = [sys.executable, "-P", HERE / "lsp_tap.py", tmp_path / "log", sys.executable, "-c"]
    done = subprocess.run(
        [*command, CHILD.format(answer=answer), str(len(asked))], input=asked, capture_output=True, check=True
    )
    assert done.stdout == answer
    noted = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["what"], line.get("items")) for line in noted] == [(7, "asked", None), (7, "answered", 2)]
    assert noted[0]["now"] <= noted[1]["now"]
