---Writes doc/stopgap.txt from the tables in lua/stopgap/config.lua:  nvim -l scripts/help.lua [--check]
---With --check nothing is written; it ends with 1 if the file differs.
local root = vim.fs.dirname(vim.fs.dirname(vim.fs.abspath and vim.fs.abspath(arg[0]) or vim.fn.fnamemodify(arg[0], ':p')))
package.path = root .. '/lua/?.lua;' .. package.path
local config = require('stopgap.config')

local WIDTH = 78
local out = {}

local function add(line)
  out[#out + 1] = (line or ''):gsub('%s+$', '')
end

---@param paragraph string
---@param indent integer
local function wrap(paragraph, indent)
  local line = (' '):rep(indent)
  for word in paragraph:gmatch('%S+') do
    if #line + #word + 1 > WIDTH and line:find('%S') then
      add(line)
      line = (' '):rep(indent)
    end
    line = line .. (line:find('%S') and ' ' or '') .. word
  end
  add(line)
end

---@param left string
---@param tag string
local function tagged(left, tag)
  tag = '*' .. tag .. '*'
  add(left .. (' '):rep(math.max(WIDTH - #left - #tag, 2)) .. tag)
end

---@param title string
---@param tag string
local function section(title, tag)
  add()
  add(('='):rep(WIDTH))
  tagged(title, tag)
  add()
end

local function code(lines)
  out[#out] = out[#out] .. ' >'
  for _, line in ipairs(vim.split(lines, '\n')) do
    add('    ' .. line)
  end
  add('<')
end

---@param value any
local function shown(value)
  if type(value) ~= 'table' then
    return vim.inspect(value)
  end
  return vim.tbl_isempty(value) and '{}' or ("{ '%s' }"):format(table.concat(value, "', '"))
end

add('*stopgap.txt*  Checked fills from a diffusion language model on your machine')
add()
wrap('Ghost text while you type, and rewrites that refine before your eyes below the text they would replace. '
  .. 'Nothing is changed before you accept it, and what you accept is one undo step. Needs Neovim 0.10 or newer and '
  .. 'the `stopgap` command.', 0)
add()
wrap('Install the folder editors/nvim with your plugin manager, or put it on ' .. "'runtimepath'; then call:", 0)
code("require('stopgap').setup()")
wrap('If nothing appears, |:Stopgap| why says why, and :checkhealth stopgap what is missing. This file is made of the '
  .. "plugin's own tables by scripts/help.lua.", 0)

section('OPTIONS', 'stopgap-options')
wrap('The argument of setup(), all of them optional:', 0)
code("require('stopgap').setup({\n  debounce_ms = 50,\n  keys = { accept = '<C-l>', dismiss = false },\n"
  .. '  settings = { showThreshold = 0.3 },\n})')
for _, option in ipairs(config.options) do
  add()
  tagged(option.name, 'stopgap-option-' .. option.name)
  wrap(option.doc, 8)
  if option.values then
    wrap(("One of '%s'."):format(table.concat(option.values, "', '")), 8)
  end
  wrap('Default: ' .. shown(option.default), 8)
end

section('KEYS', 'stopgap-keys')
wrap('In insert mode, and in normal mode of a buffer while it has a preview. Apart from `accept` and `dismiss`, which '
  .. 'share, a key that is mapped already stays as it is (:checkhealth stopgap names it).', 0)
for _, mode in ipairs({ 'i', 'preview' }) do
  add()
  add(mode == 'i' and 'Insert mode: ~' or 'With a preview: ~')
  for _, key in ipairs(config.keys) do
    if key.mode == mode then
      add(('    %-16s %s'):format(key.name, key.default))
      wrap(key.doc, 8)
    end
  end
end
add()
wrap("The same for mappings of your own: require('stopgap').accept(part), part being 'all', 'word' or 'line'; "
  .. '.next(), .prev(), .dismiss(), .trigger(). accept() and dismiss() return whether there was anything.', 0)

section('COMMANDS', ':Stopgap')
for _, command in ipairs(config.commands) do
  local arguments = command.args and (' [%s]'):format(table.concat(command.args, '|')) or ''
  add((':%sStopgap %s%s'):format(command.range and '[range]' or '', command.name, arguments))
  wrap(command.doc, 8)
end
add()
wrap("All code actions of the server are in |vim.lsp.buf.code_action()| too.", 0)

section('STATUS LINE', 'stopgap-statusline')
wrap("require('stopgap').statusline() is a few characters: the state of the daemon, a percentage while the model "
  .. 'loads, an ellipsis while it works, nothing in buffers that stopgap has no part in. E.g.:', 0)
code("vim.o.statusline = '%f %m%=%{v:lua.require(\"stopgap\").statusline()} %l,%c'")
wrap('Every change of it is the event User StopgapStatus.', 0)

section('HIGHLIGHTS', 'stopgap-highlights')
for _, highlight in ipairs(config.highlights) do
  add(('%-16s %-12s %s'):format(highlight.name, highlight.default, highlight.doc))
end
add()
add('vim:tw=78:ts=8:noet:ft=help:norl:')

local path = root .. '/doc/stopgap.txt'
local text = table.concat(out, '\n') .. '\n'
if arg[1] == '--check' then
  local file = io.open(path)
  local same = file and file:read('*a') == text
  if not same then
    io.stderr:write('doc/stopgap.txt differs from lua/stopgap/config.lua: run nvim -l scripts/help.lua\n')
  end
  os.exit(same and 0 or 1)
end
local file = assert(io.open(path, 'w'))
file:write(text)
file:close()
