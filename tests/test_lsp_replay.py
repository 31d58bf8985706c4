"""Random edits and requests, replayed against the server; `tests/lsp_replay.py` does more of it on demand."""

from pathlib import Path

import pytest
from echo_engine import name
from fake_daemon import FakeDaemon, done
from lsp_client import LspClient
from lsp_replay import replay


@pytest.mark.parametrize("options", [{"candidates": 1}, {"candidates": 1, "prepareNext": False}])
def test_the_servers_text_is_the_clients_text_at_every_answer(tmp_path: Path, options: dict[str, object]) -> None:
    with (
        FakeDaemon(tmp_path, lambda fill: done(fill, name(fill.source, fill.start))) as daemon,
        LspClient(daemon.env) as client,
    ):
        client.initialize(options=options)
        counts = replay(client, edits=250, seed=len(options))
        assert counts["answered"] > 50
        assert counts["overtaken"] > 20
        assert client.stop() == 0
    assert client.stderr == b"", client.stderr.decode()
