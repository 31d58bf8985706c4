"""The plugin in real Neovims, with the real language server and daemon and an engine that knows a few lines."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stopgap.infill import languages

from .conftest import end_process
from .nvim.driver import ROOT, Neovim, executable
from .nvim.engine import KEEP_ORDER

VERSIONS = ("0.10", "0.11", "0.12")
"""0.12 is run twice: with its own inline completion, and with ours."""
ENGINE = f"{Path(__file__).parent / 'nvim/engine.py'}:load"
pytestmark = pytest.mark.slow


def some_version() -> str:
    for version in reversed(VERSIONS):
        if executable(version).exists():
            return version
    pytest.skip("skipped: no Neovim here; tests/nvim/install puts some into the cache folder")


@pytest.fixture(scope="module")
def daemon() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="sg-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOPGAP_RUNTIME_DIR", f"{folder}/run")
        patch.setenv("STOPGAP_STATE_DIR", f"{folder}/state")
        patch.setenv("STOPGAP_CONFIG", f"{folder}/config.toml")
        patch.setenv("STOPGAP_ENGINE_FACTORY", ENGINE)
        patch.setenv("STOPGAP_TEST_STEP_MS", "60")
        yield
        for lock in Path(folder, "run").glob("*.lock"):
            end_process(lock)


@pytest.fixture(scope="module", params=[*VERSIONS, "0.12 own"])
def child(request: pytest.FixtureRequest, daemon: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neovim]:
    version, _, own = request.param.partition(" ")
    if not executable(version).exists():
        pytest.skip(f"skipped: no Neovim {version} here; tests/nvim/install puts it into the cache folder")
    setup = f"{{ engine = '{own or 'auto'}', settings = {{ confirmRewrites = false }} }}"
    with Neovim(version, tmp_path_factory.mktemp("nvim"), setup=setup) as running:
        yield running


@pytest.fixture
def nvim(child: Neovim) -> Iterator[Neovim]:
    """The shared child, in normal mode, without buffers and messages of the test before."""
    yield child
    child.type("<Esc><Esc>")
    child.until(lambda: child.call("nvim_get_mode")["mode"] == "n")
    child.lua("require('stopgap.preview').reject(); vim.g.messages = {}")
    child.command("silent! only! | silent! %bwipeout!")


# ---- ghost text -------------------------------------------------------------------------------------------


def test_ghost_text_appears_while_typing_and_tab_takes_it(nvim: Neovim) -> None:
    nvim.edit("x = 1\n")
    nvim.type("odef ad")
    assert nvim.until(nvim.ghost) == ["d(a, b):", "    return a + b"]
    assert nvim.screen()[1:3] == ["def add(a, b):", "    return a + b"]
    assert nvim.lines() == ["x = 1", "def ad"]
    nvim.type("<Tab>")
    nvim.until(lambda: nvim.lines() == ["x = 1", "def add(a, b):", "    return a + b"])
    assert nvim.cursor() == (3, 16)
    assert nvim.ghost() == []


def test_words_and_lines_are_taken_one_by_one_and_the_rest_stays(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("<M-Right>")
    nvim.until(lambda: nvim.lines()[0] == "def add(")
    assert nvim.ghost() == ["a, b):", "    return a + b"]
    nvim.type("<M-Right>")
    nvim.until(lambda: nvim.lines()[0] == "def add(a")
    nvim.type("<M-Down>")
    nvim.until(lambda: nvim.lines()[0] == "def add(a, b):")
    assert nvim.ghost() == ["    return a + b"]
    nvim.type("<M-Right>")  # a word across the end of a line
    nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    return"])
    assert nvim.ghost() == [" a + b"]
    nvim.type("<Tab>")
    nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    return a + b"])


def test_what_was_taken_is_one_undo_step_between_what_was_typed(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("<Tab>  # sum<Esc>")
    nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    return a + b  # sum"])
    for expected in (["def add(a, b):", "    return a + b"], ["def add"], [""]):
        nvim.type("u")
        nvim.until(lambda expected=expected: nvim.lines() == expected)
    nvim.type("<C-r><C-r>")
    nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    return a + b"])


def test_candidates_are_asked_for_and_cycle(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    assert nvim.until(nvim.ghost)[-1] == "    return a + b"
    nvim.type("<M-]>")  # the first is shown already
    nvim.until(lambda: nvim.ghost()[-1:] == ["    return b + a (2/3)"])
    nvim.type("<M-]>")
    nvim.until(lambda: nvim.ghost()[-1:] == ["    return total (3/3)"])
    nvim.type("<M-]>")
    nvim.until(lambda: nvim.ghost()[-1:] == ["    return a + b (1/3)"])
    nvim.type("<M-[>")
    nvim.until(lambda: nvim.ghost()[-1:] == ["    return total (3/3)"])
    nvim.type("<Tab>")
    nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    total = a + b", "    return total"])


def test_a_trigger_works_where_typing_asks_nothing(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.command("Stopgap disable buffer")
    nvim.type("idef add")
    nvim.type("<M-\\>")
    nvim.until(lambda: nvim.ghost()[-1:] == ["    return a + b (1/3)"])
    nvim.type("<C-]>")
    nvim.until(lambda: nvim.ghost() == [])
    nvim.type("(")
    nvim.until(lambda: nvim.lines() == ["def add("])
    assert nvim.ghost() == []


def test_a_dismissed_text_is_gone_and_tab_is_a_tab_again(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("<C-]>")
    nvim.until(lambda: nvim.ghost() == [])
    nvim.type("<Tab>")
    nvim.until(lambda: nvim.lines()[0].expandtabs(4).startswith("def add "))


def test_typing_along_keeps_the_text_and_typing_other_things_drops_it(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("(a")
    nvim.until(lambda: nvim.ghost()[:1] == [", b):"])
    nvim.type("!")
    nvim.until(lambda: nvim.ghost() == [])


@pytest.mark.parametrize(
    ("typed", "behind", "expected"),
    [
        ("greeting = \"Gr", "", ['greeting = "Grüße 😀, 世界".upper()']),
        ('names = ["ä", "😀"]; c', "", ['names = ["ä", "😀"]; count = len(names)']),
        ("print(", ")", ["print(max(values, key=len))"]),
        ("def add(", ")", ["def add(a, b):", "    return a + b"]),
        ("call(", ")", ["call(", "    first,", "    second,", ")"]),
    ],
    ids=["non-ascii ahead", "non-ascii before", "bracket behind", "bracket in the line", "bracket that moves down"],
)  # fmt: skip
def test_the_line_becomes_what_the_model_said(nvim: Neovim, typed: str, behind: str, expected: list[str]) -> None:
    nvim.edit(f"# é 😀\n{behind}\n")
    nvim.type("jI" + typed)
    nvim.until(nvim.ghost)
    # What a user sees before deciding is what they get, line by line.
    shown = nvim.screen()[1 : 1 + len(expected)]
    nvim.type("<Tab>")
    nvim.until(lambda: nvim.lines()[1 : 1 + len(expected)] == expected)
    if behind != ")" or len(expected) < 4 or not nvim.lua("return require('stopgap.builtin').wanted()"):
        assert shown == expected  # Neovim's own leaves a bracket that moves down where it is


def test_a_bracket_that_an_autopairs_plugin_adds_is_not_doubled(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.command("inoremap <buffer> ( ()<Left>")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("(")
    nvim.until(lambda: nvim.lines() == ["def add()"] and nvim.screen()[:2] == ["def add(a, b):", "    return a + b"])
    nvim.type("<Tab>")
    nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    return a + b"])


def test_lines_of_a_dos_file_stay_clean(nvim: Neovim) -> None:
    nvim.edit("x = 1\r\ny = 2\r\n")
    nvim.type("odef add")
    assert nvim.until(nvim.ghost) == ["(a, b):", "    return a + b"]
    nvim.type("<Tab><Esc>:w<CR>")
    nvim.until(lambda: b"return" in (nvim.home / "t.py").read_bytes())
    assert (nvim.home / "t.py").read_bytes() == b"x = 1\r\ndef add(a, b):\r\n    return a + b\r\ny = 2\r\n"


def test_text_for_one_buffer_never_shows_in_another(nvim: Neovim) -> None:
    nvim.edit("\n", "one.py")
    nvim.edit("\n", "two.py")
    nvim.type("idef add<Cmd>buffer one.py<CR>")
    nvim.until(lambda: nvim.lua("return require('stopgap.client').busy") == 0)
    nvim.type("x = ")
    nvim.until(lambda: nvim.lines() == ["x = "])
    assert nvim.ghost() == []


def test_positions_are_counted_in_both_encodings(nvim: Neovim) -> None:
    nvim.edit("\n")
    encoding = nvim.lua("return require('stopgap.client').get().offset_encoding")
    assert encoding == ("utf-16" if nvim.lua("return vim.fn.has('nvim-0.11')") == 0 else "utf-8")


def test_ghost_text_can_be_switched_off_and_on(nvim: Neovim) -> None:
    nvim.edit("\n")
    assert nvim.lua("return require('stopgap').statusline()") == "stopgap"
    nvim.command("Stopgap disable")
    assert nvim.lua("return require('stopgap').statusline()") == "stopgap off"
    nvim.type("idef add")
    asked = "local n = 0; for _ in pairs(require('stopgap.client').get().requests) do n = n + 1 end; return n"
    assert nvim.lua(asked) == 0
    nvim.command("Stopgap enable")
    nvim.type("(")
    nvim.until(nvim.ghost)
    assert nvim.messages() == ["stopgap: ghost text is off", "stopgap: ghost text is on"]


# ---- rewrites ---------------------------------------------------------------------------------------------

SOURCE = "def unique(values):\n    return values\n\n\nprint(unique([1]))\n"
FIRST, SECOND = "    return sorted(set(values))  # 😀 ok", "    return list(dict.fromkeys(values))"


def begin_rewrite(nvim: Neovim) -> None:
    nvim.edit(SOURCE)
    nvim.type("j")
    nvim.until(lambda: nvim.cursor()[0] == 2)
    nvim.type(":Stopgap rewrite<CR>")


def finished(nvim: Neovim) -> bool:
    return nvim.preview()[:1] == ["stopgap: <CR> accept · <Esc> reject · <M-]> again"]


def test_a_rewrite_refines_beside_the_untouched_text_and_is_one_undo_step(nvim: Neovim) -> None:
    begin_rewrite(nvim)
    nvim.until(lambda: nvim.preview()[:1] == ["stopgap: step 2 of 4 · <Esc> stop"])
    assert nvim.preview()[1].startswith("    return so")
    assert nvim.preview()[1].endswith("???")
    nvim.until(lambda: finished(nvim))
    assert nvim.preview()[1:] == [FIRST]
    assert nvim.lines() == SOURCE.splitlines()
    nvim.type("<CR>")
    nvim.until(lambda: nvim.lines()[1] == FIRST)
    assert nvim.lines() == SOURCE.replace("    return values", FIRST).splitlines()
    assert nvim.preview() == []
    nvim.type("u")
    nvim.until(lambda: nvim.lines() == SOURCE.splitlines())


def test_a_draft_is_dimmed_where_it_still_changes(nvim: Neovim) -> None:
    begin_rewrite(nvim)
    chunks = nvim.until(lambda: [chunk for chunk in nvim.preview_chunks() if "?" in chunk[0]] and nvim.preview_chunks())
    assert [name for text, name in chunks if "?" in text] == ["StopgapNoise"]
    assert [name for text, name in chunks if "return" in text] == ["StopgapSettled"]
    nvim.until(lambda: finished(nvim))
    assert "StopgapNoise" not in {name for _, name in nvim.preview_chunks()}


def test_words_behind_the_command_are_an_instruction(nvim: Neovim) -> None:
    nvim.edit(SOURCE)
    nvim.type(f"j:Stopgap rewrite {KEEP_ORDER}<CR>")
    nvim.until(lambda: finished(nvim))
    assert nvim.preview()[1:] == [SECOND]


def test_a_hole_is_filled_on_command(nvim: Neovim) -> None:
    nvim.edit("def unique(values):\n    ...\n")
    nvim.type("j:Stopgap fill<CR>")
    nvim.until(lambda: finished(nvim))
    nvim.type("<CR>")
    nvim.until(lambda: nvim.lines() == ["def unique(values):", FIRST])


def test_a_rewrite_can_be_tried_again_and_rejected(nvim: Neovim) -> None:
    begin_rewrite(nvim)
    nvim.until(lambda: finished(nvim) and nvim.preview()[1:] == [FIRST])
    nvim.type("<M-]>")
    nvim.until(lambda: finished(nvim) and nvim.preview()[1:] == [SECOND])
    nvim.type("<Esc>")
    nvim.until(lambda: nvim.preview() == [])
    assert nvim.lines() == SOURCE.splitlines()
    nvim.type("<CR>")  # means what it always does again
    nvim.until(lambda: nvim.cursor()[0] == 3)


def test_escape_stops_a_rewrite_under_way(nvim: Neovim) -> None:
    begin_rewrite(nvim)
    nvim.until(lambda: "step" in "".join(nvim.preview()[:1]))
    nvim.type("<Esc>")
    nvim.until(lambda: nvim.preview() == [] and nvim.lua("return require('stopgap.client').busy") == 0)
    assert nvim.lines() == SOURCE.splitlines()


MEAN = """def mean(values):
    total = 0
    for value in values:
        total = total + value
    count = len(values)
    assert count
    result = total / count
    return result


äöü = mean(['😀'])
"""
SUMMED = MEAN.replace("0\n    for value in values:\n        total = total + value", "sum(values)")
BOTH = SUMMED.replace("result = total / count\n    return result", "return total / count")
TWO = "stopgap: <CR> accept all · <M-CR> this one (2 left) · <M-BS> skip it · <Esc> reject · <M-]> again"


def begin_long_rewrite(nvim: Neovim) -> None:
    nvim.edit(MEAN)
    nvim.type(":2,8Stopgap rewrite<CR>")
    nvim.until(lambda: nvim.preview()[:1] == [TWO])
    assert nvim.preview()[1:5] == BOTH.splitlines()[1:5]


def test_one_change_of_a_rewrite_is_taken_and_the_other_skipped(nvim: Neovim) -> None:
    begin_long_rewrite(nvim)
    nvim.type("<M-CR>")
    nvim.until(lambda: nvim.lines() == SUMMED.splitlines())
    assert finished(nvim)  # one change is left
    assert nvim.preview()[1:5] == BOTH.splitlines()[1:5]
    nvim.type("<M-BS>")
    nvim.until(lambda: nvim.preview() == [])
    assert nvim.lines() == SUMMED.splitlines()
    nvim.type("u")
    nvim.until(lambda: nvim.lines() == MEAN.splitlines())


def test_the_first_change_is_skipped_and_the_rest_accepted(nvim: Neovim) -> None:
    begin_long_rewrite(nvim)
    nvim.type(":Stopgap reject hunk<CR>")
    nvim.until(lambda: finished(nvim))
    nvim.type("<CR>")
    nvim.until(lambda: nvim.preview() == [])
    assert (
        nvim.lines()
        == BOTH.replace("sum(values)", "0\n    for value in values:\n        total = total + value").splitlines()
    )


def test_changes_taken_one_by_one_are_the_whole_rewrite_and_each_an_undo_step(nvim: Neovim) -> None:
    begin_long_rewrite(nvim)
    nvim.type("<M-CR>")
    nvim.until(lambda: nvim.lines() == SUMMED.splitlines())
    nvim.type(":Stopgap accept hunk<CR>")
    nvim.until(lambda: nvim.preview() == [])
    assert nvim.lines() == BOTH.splitlines()
    assert nvim.messages() == []
    nvim.type("u")
    nvim.until(lambda: nvim.lines() == SUMMED.splitlines())


def test_trying_again_after_one_change_is_about_the_same_lines(nvim: Neovim) -> None:
    begin_long_rewrite(nvim)
    nvim.type("<M-CR>")
    nvim.until(lambda: finished(nvim))
    nvim.lua("require('stopgap.preview').again()")
    nvim.until(lambda: finished(nvim) and nvim.preview()[1:5] == BOTH.splitlines()[1:5])
    nvim.type("<CR>")
    nvim.until(lambda: nvim.lines() == BOTH.splitlines())


def test_a_change_of_the_text_drops_a_rewrite(nvim: Neovim) -> None:
    begin_rewrite(nvim)
    nvim.until(lambda: finished(nvim))
    nvim.type("x")
    nvim.until(lambda: nvim.preview() == [])
    assert nvim.messages() == ["stopgap: the text changed, so the rewrite was dropped"]


def test_only_the_characters_selected_are_rewritten(nvim: Neovim) -> None:
    nvim.edit('x = "😀" + [ö] + "ä"\n')
    nvim.type("f[vf]:Stopgap rewrite<CR>")
    nvim.until(lambda: finished(nvim))
    nvim.type("<CR>")
    nvim.until(lambda: nvim.lines() == [f'x = "😀" + {FIRST.strip()} + "ä"'])


def test_a_code_action_of_neovims_own_menu_rewrites(nvim: Neovim) -> None:
    nvim.edit(SOURCE)
    nvim.type("j")
    nvim.until(lambda: nvim.cursor()[0] == 2)
    nvim.lua("""
        vim.ui.input = function(options, done) vim.g.asked = options.prompt; done('sort them') end
        vim.lsp.buf.code_action({ apply = true, filter = function(a) return a.title:find('instruction') ~= nil end })
    """)
    nvim.until(lambda: nvim.lines()[1] == FIRST)
    assert nvim.lua("return vim.g.asked") == "What shall become of this code? "


# ---- all around -------------------------------------------------------------------------------------------


def test_checkhealth_finds_nothing_wrong(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.command("checkhealth stopgap")
    report = "\n".join(nvim.lines())
    assert "daemon: ready" in report or "daemon: loading" in report
    assert "stopgap lsp" in report
    assert "ERROR" not in report
    assert "WARNING" not in report


def test_the_command_completes_its_words(nvim: Neovim) -> None:
    words = nvim.lua("return vim.fn.getcompletion('Stopgap ', 'cmdline')")
    assert set(words) >= {
        "enable", "disable", "toggle", "pause", "resume", "status", "why", "rewrite", "fill", "restart",
    }  # fmt: skip
    assert nvim.lua("return vim.fn.getcompletion('Stopgap disable ', 'cmdline')") == ["buffer"]
    documented = nvim.lua("return vim.tbl_map(function(c) return c.name end, require('stopgap.config').commands)")
    assert sorted(documented) == sorted(words)


def test_what_the_daemon_does_is_told_on_command(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("<Esc>")
    nvim.command("Stopgap status")
    nvim.until(lambda: nvim.messages() == ["stopgap: ready · knower"])


def test_pausing_shows_in_the_status_line(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("idef add")
    nvim.until(nvim.ghost)
    nvim.type("<Esc>")
    nvim.command("Stopgap pause")
    nvim.until(lambda: nvim.lua("return require('stopgap').statusline()") == "stopgap paused")
    nvim.command("Stopgap resume")
    nvim.until(lambda: nvim.lua("return require('stopgap').statusline()") == "stopgap")


def test_why_says_why_nothing_appeared(nvim: Neovim) -> None:
    nvim.edit("\n")
    nvim.type("izzz<M-\\>")
    nvim.until(
        lambda: nvim.lua("return vim.fn.execute('messages')").endswith("stopgap: nothing for this place (:Stopgap why)")
    )
    nvim.type("<Esc>:Stopgap why<CR>")
    nvim.until(lambda: any("this engine does not know the line" in line for line in nvim.lines()))
    nvim.type("q")
    nvim.until(lambda: nvim.lines() == ["zzz"])


def test_a_restart_brings_ghost_text_back(nvim: Neovim) -> None:
    nvim.edit("\n")
    first = nvim.lua("return require('stopgap.client').get().id")
    nvim.command("Stopgap restart")
    nvim.until(
        lambda: nvim.lua("local c = require('stopgap.client').attached(0); return c and c.id") not in {None, first}
    )
    nvim.until(lambda: nvim.lua("return require('stopgap.client').get().initialized"))
    nvim.type("idef add")
    nvim.until(nvim.ghost)


def test_no_key_is_mapped_but_the_documented_ones(nvim: Neovim) -> None:
    mapped = nvim.lua("""
        local found = {}
        for _, mode in ipairs({ 'n', 'i', 'x', 'o', 'c', 't' }) do
            for _, map in ipairs(vim.api.nvim_get_keymap(mode)) do
                if (map.desc or ''):find('^stopgap') then table.insert(found, mode .. ' ' .. map.desc) end
            end
        end
        return found
    """)
    keys = nvim.lua("return require('stopgap.config').keys")
    assert sorted(mapped) == sorted(f"i stopgap: {k['name'].replace('_', ' ')}" for k in keys if k["mode"] == "i")


def test_a_tab_that_was_mapped_already_keeps_its_meaning(tmp_path: Path, daemon: None) -> None:
    before = """
        vim.keymap.set('i', '<Tab>', function() return '[tab]' end, { expr = true })
        vim.keymap.set('i', '<M-]>', '[other]')
    """
    with Neovim(some_version(), tmp_path, before=before) as nvim:
        nvim.edit("\n")
        nvim.type("i<Tab><M-]>")
        nvim.until(lambda: nvim.lines() == ["[tab][other]"])
        nvim.type("<C-u>def add")
        nvim.until(nvim.ghost)
        nvim.type("<Tab>")
        nvim.until(lambda: nvim.lines() == ["def add(a, b):", "    return a + b"])
        nvim.type("<Esc>")
        nvim.command("checkhealth stopgap")
        assert any("<M-]> (next) was mapped already" in line for line in nvim.lines())


def test_what_cannot_work_is_said_once_and_plainly(tmp_path: Path) -> None:
    setup = "{ cmd = { 'no-such-stopgap', 'lsp' }, engin = 'own', debounce_ms = 'soon', keys = { acept = '<C-l>' } }"
    with Neovim(some_version(), tmp_path, setup=setup) as nvim:
        nvim.lua("vim.cmd.edit('a.py'); vim.cmd.edit('b.py')")
        assert nvim.messages() == [
            "stopgap: option debounce_ms: a number was expected",
            "stopgap: there is no option engin; see :help stopgap-options",
            "stopgap: there is no option keys.acept; see :help stopgap-options",
            "stopgap: no-such-stopgap cannot be run; install it with `pipx install stopgap`, or set the option cmd",
        ]
        nvim.command("checkhealth stopgap")
        assert any("ERROR" in line and "no-such-stopgap" in line for line in nvim.lines())


def test_the_help_file_is_that_of_the_tables() -> None:
    script = str(ROOT / "editors/nvim/scripts/help.lua")
    told = subprocess.run(
        [executable(some_version()), "-l", script, "--check"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr


def test_every_filetype_of_the_default_has_a_language(tmp_path: Path) -> None:
    with Neovim(some_version(), tmp_path) as nvim:
        names = nvim.lua("""
            local values = require('stopgap.config').defaults()
            return vim.tbl_map(require('stopgap.client').language_id, values.filetypes)
        """)
    assert [languages.by_name(name).name for name in names]
