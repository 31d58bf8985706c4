"""Names, folders and the one in use; the daemon that has to make room is a real process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import time
from pathlib import Path

import pytest

from stopgap.daemon import config, shelf, transport
from stopgap.daemon.client import Client
from stopgap.daemon.paths import Place, place


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty shelf and configuration of our own."""
    for name in [name for name in os.environ if name.startswith("STOPGAP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STOPGAP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STOPGAP_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "models"


def put(models: Path, name: str, bits: int = 4) -> Path:
    """A model as far as the shelf looks at one."""
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"bits": bits, "source": "somewhere"}))
    (folder / "packed.safetensors").write_bytes(b"x" * 5000)
    return folder


def test_an_empty_shelf_has_the_starter_which_is_in_use(models: Path) -> None:
    (starter,) = shelf.shelf()
    assert (starter.name, starter.used, starter.bits, starter.command) == ("starter", True, None, "")
    assert (starter.folder / "config.json").is_file()


def test_models_are_listed_with_bits_size_and_source(models: Path) -> None:
    folder = put(models, "b-8bit", 8)
    put(models, "a-4bit")
    starter, first, second = shelf.shelf()
    assert [starter.name, first.name, second.name] == ["starter", "a-4bit", "b-8bit"]
    assert (second.bits, second.source, second.folder, second.used) == (8, "somewhere", folder, False)
    assert second.size == sum(path.stat().st_size for path in folder.iterdir())
    assert abs(second.imported - time.time()) < 600


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"bits": "four"}'])
def test_a_folder_with_an_unreadable_manifest_is_still_listed(models: Path, junk: bytes) -> None:
    (put(models, "odd") / "manifest.json").write_bytes(junk)
    assert shelf.find("odd").bits is None


def test_an_unfinished_import_is_listed_with_the_command_that_goes_on(models: Path) -> None:
    shelf.begin("big", "stopgap model import x --name big")
    (models / "big.partial" / "model").mkdir()
    found = shelf.find("big")
    assert found.command == "stopgap model import x --name big"
    with pytest.raises(shelf.ShelfError, match="`stopgap model import x --name big` goes on with it"):
        shelf.use("big")
    assert shelf.place_for("big") == models / "big", "the same name may be imported again"
    shelf.remove("big")
    assert not any(models.iterdir())


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "-x", "x-", ".hidden", "a b", "x.partial", "con", "NUL.4bit",
     "com1", "a\n", "é", "x" * 65, "a:b", "*"],
)  # fmt: skip
def test_a_name_that_is_no_plain_folder_name_is_refused(models: Path, name: str) -> None:
    with pytest.raises(shelf.ShelfError, match="cannot be a model's name") as error:
        shelf.place_for(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x", "gemma-4bit", "A.b_c-9", "x" * 64])
def test_plain_names_are_accepted(models: Path, name: str) -> None:
    assert shelf.place_for(name) == models / name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("google/diffusiongemma-26B-A4B-it", "diffusiongemma-26b-a4b-it-4bit"),
        ("unsloth/x-GGUF:Q4_K_M", "x-gguf-4bit"),
        ("/models/My Model (1)/", "my-model-1-4bit"),
        ("~/m/model-Q8_0.gguf", "model-q8_0-4bit"),
        ("///", "model-4bit"),
        ("x" * 300, "x" * 50 + "-4bit"),
    ],
)
def test_a_proposed_name_comes_from_the_source_and_is_valid(source: str, name: str) -> None:
    assert shelf.proposed_name(source, 4) == name == shelf.checked_name(name)


def test_the_readme_uses_the_name_that_its_import_gives() -> None:
    page = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")
    imported = re.search(r"stopgap model import (\S+) --bits (\d+)", page)
    used = re.search(r"stopgap model use (\S+)", page)
    assert imported and used and used[1] == shelf.proposed_name(imported[1], int(imported[2]))


def test_a_taken_name_is_refused_with_both_ways_out(models: Path) -> None:
    put(models, "mine")
    with pytest.raises(shelf.ShelfError, match=r"already; choose another --name or say `stopgap model remove mine`"):
        shelf.place_for("mine")
    with pytest.raises(shelf.ShelfError, match="comes with stopgap"):
        shelf.place_for("starter")


def test_an_unknown_name_is_told_what_is_near_or_what_there_is(models: Path) -> None:
    put(models, "gemma-4bit")
    with pytest.raises(shelf.ShelfError, match="did you mean 'gemma-4bit'"):
        shelf.find("gemma-4bits")
    with pytest.raises(shelf.ShelfError, match="there are starter, gemma-4bit"):
        shelf.find("qqq")


def test_a_model_is_given_by_its_name_or_its_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(models, "mine")
    monkeypatch.chdir(models)
    (models / "beside").mkdir()
    for given, meant in [("starter", "starter"), (str(folder), str(folder)), ("./mine", str(folder))]:
        assert shelf.model_of(given) == meant
    assert shelf.model_of("beside") == str(models / "beside"), "a folder that is here comes first"
    monkeypatch.chdir("/")
    assert shelf.model_of("mine") == str(folder)
    with pytest.raises(shelf.ShelfError, match="did you mean 'mine'"):
        shelf.model_of("mime")


def test_use_writes_the_configuration_and_nothing_else_in_it(models: Path) -> None:
    folder = put(models, "m")
    path = config.config_path()
    path.write_text("# mine\nthreads = 2  # two\n\n")
    said = shelf.use("m")
    assert path.read_text() == f'model = "{folder}"\n# mine\nthreads = 2  # two\n\n'
    assert said == f"m is in use: the daemon starts with it at the next request ({path})"
    assert shelf.find("m").used and not shelf.find("starter").used
    shelf.use("starter")
    assert path.read_text() == 'model = "starter"\n# mine\nthreads = 2  # two\n\n'


def test_use_says_when_a_variable_is_stronger(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(models, "m")
    monkeypatch.setenv("STOPGAP_MODEL", "starter")
    assert "the variable STOPGAP_MODEL=starter is stronger: unset it" in shelf.use("m")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'model = "new"\n'),
        ('model = "old"', 'model = "new"'),
        ("  model='old' # why\nthreads = 1", 'model = "new"\nthreads = 1'),
        ('threads = 1\n"model" = "old"\r\n', 'threads = 1\nmodel = "new"\n'),
        ("# model = 'no'\n", "model = \"new\"\n# model = 'no'\n"),
    ],
)
def test_one_line_of_the_configuration_is_changed(models: Path, before: str, after: str) -> None:
    config.config_path().write_text(before)
    config.write("model", "new")
    assert config.config_path().read_text() == after


@pytest.mark.parametrize("value", ['C:\\Users\\é "x"', "/a\nb", "/\U0001f600"])
def test_any_path_can_be_written(models: Path, value: str) -> None:
    config.write("model", value)
    assert config._read(config.config_path()) == {"model": value}


def test_a_configuration_that_cannot_be_changed_safely_is_left_alone(models: Path) -> None:
    text = "model = '''\nold'''\n"
    config.config_path().write_text(text)
    with pytest.raises(config.ConfigError, match='put `model = "new"` there yourself'):
        config.write("model", "new")
    assert config.config_path().read_text() == text


def test_a_linked_configuration_stays_a_link_and_keeps_its_mode(models: Path, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles.toml"
    target.write_text("")
    target.chmod(0o600)
    config.config_path().symlink_to(target)
    config.write("model", "new")
    assert config.config_path().is_symlink() and target.read_text() == 'model = "new"\n'
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"dotfiles.toml", "config.toml"}


def test_removing_gives_the_bytes_back(models: Path) -> None:
    put(models, "m")
    size = shelf.find("m").size
    assert shelf.remove("m") == size > 5000
    assert not any(models.iterdir())


def test_neither_the_starter_nor_the_model_in_use_is_removed(models: Path) -> None:
    folder = put(models, "m")
    shelf.use("m")
    with pytest.raises(shelf.ShelfError, match="m is in use; `stopgap model use starter` first"):
        shelf.remove("m")
    with pytest.raises(shelf.ShelfError, match="part of stopgap"):
        shelf.remove("starter")
    assert folder.is_dir()


def test_the_daemon_of_the_model_before_makes_room_and_the_next_request_has_the_new_one(
    stub_daemon: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor stays connected to its daemon, and would go on with the old model for as long as it is open."""
    monkeypatch.setenv("STOPGAP_DATA_DIR", str(tmp_path))
    put(tmp_path / "models", "m")

    async def editor() -> tuple[str, str]:
        client = await Client.connect("editor")
        old = client.welcome.model
        shelf.use("m")
        while client.connected:
            await asyncio.sleep(0.01)
        await client.status()
        new = client.welcome.model
        await client.close()
        return old, new

    old_lock = stub_daemon.lock
    old, new = asyncio.run(asyncio.wait_for(editor(), 60))
    assert (old, new) == ("starter", str(tmp_path / "models" / "m"))
    assert transport.holder(old_lock) is None
    assert transport.holder(place(config.load().key).lock) is not None
