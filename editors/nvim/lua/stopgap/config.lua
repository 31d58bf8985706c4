---Every option, key, command and highlight group: its default and its meaning are stated here only.
---`doc/stopgap.txt` is made of these tables by `scripts/help.lua`. Knows nothing of what they do.
local M = {}

---@class stopgap.Entry
---@field name string
---@field doc string what it means, as one paragraph of the help file
---@field default? any
---@field type? string a Lua type, or several joined by "|"
---@field values? string[] the only strings allowed

---@class stopgap.Config
---@field cmd string[]
---@field filetypes string[]
---@field enabled boolean
---@field automatic boolean
---@field engine "auto"|"builtin"|"own"
---@field debounce_ms integer
---@field settings table<string, any>
---@field keys table<string, string|false>

---@type stopgap.Entry[]
M.options = {
  {
    name = 'cmd',
    type = 'table',
    default = { 'stopgap', 'lsp' },
    doc = 'The command that starts the language server. It is looked up on $PATH; a program in the workspace is '
      .. 'never run by itself, because opening a file must not start what came with it.',
  },
  {
    name = 'filetypes',
    type = 'table',
    default = {
      'python', 'javascript', 'javascriptreact', 'typescript', 'typescriptreact', 'rust', 'go', 'java', 'c', 'cpp',
      'cuda', 'cs', 'ruby', 'php', 'sh', 'bash', 'lua', 'json', 'jsonc', 'yaml', 'toml', 'html', 'css', 'markdown',
      'sql',
    },
    doc = 'Filetypes of the buffers that are sent to the server.',
  },
  {
    name = 'enabled',
    type = 'boolean',
    default = true,
    doc = 'Ghost text at all. |:Stopgap| changes it while Neovim runs; rewrites work either way.',
  },
  {
    name = 'automatic',
    type = 'boolean',
    default = true,
    doc = 'Ghost text while typing. When off, nothing is asked until the trigger key is pressed.',
  },
  {
    name = 'engine',
    type = 'string',
    default = 'auto',
    values = { 'auto', 'builtin', 'own' },
    doc = 'Who shows automatic ghost text: "builtin" is |vim.lsp.inline_completion| of Neovim 0.12, "own" is this '
      .. 'plugin (asks sooner, cancels what typing has overtaken), "auto" is the builtin one where there is one. '
      .. 'All keys work the same with both: candidates asked for by hand and what is left after a word or a line '
      .. 'are always shown by this plugin.',
  },
  {
    name = 'debounce_ms',
    type = 'number',
    default = 75,
    doc = 'How long typing must pause before the own engine asks. The builtin one waits 200 ms.',
  },
  {
    name = 'settings',
    type = 'table',
    default = {},
    doc = 'Settings of the language server by their camelCase names, e.g. { showThreshold = 0.3, inComments = true }. '
      .. 'A wrong name is answered with the nearest right one.',
  },
  {
    name = 'keys',
    type = 'table',
    default = {},
    doc = 'Keys that differ from the defaults in |stopgap-keys|; false leaves one unmapped.',
  },
}

---Keys of insert mode (`mode` "i") and of a buffer with an open preview ("preview").
---@type (stopgap.Entry|{mode: string})[]
M.keys = {
  { name = 'accept', mode = 'i', default = '<Tab>', doc = 'Accept the ghost text. With nothing to accept, or with an '
    .. 'entry of the completion menu selected, the key does what it did before: what it was mapped to, or a tab.' },
  { name = 'accept_word', mode = 'i', default = '<M-Right>', doc = 'Accept the next word of it; the rest stays.' },
  { name = 'accept_line', mode = 'i', default = '<M-Down>', doc = 'Accept the next line of it; the rest stays.' },
  { name = 'next', mode = 'i', default = '<M-]>', doc = 'Show the next candidate; the first time, ask for more.' },
  { name = 'prev', mode = 'i', default = '<M-[>', doc = 'Show the previous candidate.' },
  { name = 'dismiss', mode = 'i', default = '<C-]>', doc = 'Hide the ghost text. Without any, an abbreviation expands '
    .. 'as always.' },
  { name = 'trigger', mode = 'i', default = '<M-\\>', doc = 'Ask for ghost text now, with several candidates.' },
  { name = 'preview_accept', mode = 'preview', default = '<CR>', doc = 'Apply the rewrite shown, as one undo step.' },
  { name = 'preview_reject', mode = 'preview', default = '<Esc>', doc = 'Drop the rewrite; while the model still works, '
    .. 'stop it.' },
  { name = 'preview_accept_hunk', mode = 'preview', default = '<M-CR>', doc = 'Apply the first of the changes that the '
    .. 'rewrite consists of; the rest stays to be decided. Each is an undo step.' },
  { name = 'preview_skip_hunk', mode = 'preview', default = '<M-BS>', doc = 'Leave that change out.' },
  { name = 'preview_again', mode = 'preview', default = '<M-]>', doc = 'Ask for another rewrite of the same place.' },
}

---@type (stopgap.Entry|{args?: string[], range?: boolean})[]
M.commands = {
  { name = 'enable', args = { 'buffer' }, doc = 'Show ghost text again, everywhere or in this buffer.' },
  { name = 'disable', args = { 'buffer' }, doc = 'No ghost text, everywhere or in this buffer; typing then sends '
    .. 'no request.' },
  { name = 'toggle', args = { 'buffer' }, doc = 'The one or the other.' },
  { name = 'pause', doc = 'Free the memory of the model, for every editor of this user.' },
  { name = 'resume', doc = 'Take it back.' },
  { name = 'status', doc = 'What the daemon is doing, and with which model.' },
  { name = 'why', doc = 'Why nothing appeared: the last requests and what became of them.' },
  { name = 'rewrite', args = { 'instruction' }, range = true, doc = 'Rewrite the selection, or the function around the cursor. Words after it are an '
    .. 'instruction, for models that follow instructions. Shows a preview first.' },
  { name = 'fill', doc = 'Fill the hole at the cursor: a placeholder, or an empty body. Shows a preview first.' },
  { name = 'accept', args = { 'hunk' }, doc = 'Apply the preview, or the change of it that comes next.' },
  { name = 'reject', args = { 'hunk' }, doc = 'Drop the preview, or the change of it that comes next.' },
  { name = 'again', doc = 'Try the preview again.' },
  { name = 'restart', doc = 'Stop the language server and start it again, e.g. after an upgrade.' },
}

---@type stopgap.Entry[]
M.highlights = {
  { name = 'StopgapGhost', default = 'NonText', doc = 'Ghost text.' },
  { name = 'StopgapHint', default = 'Comment', doc = 'The number of a candidate, and the line above a preview.' },
  { name = 'StopgapOld', default = 'DiffDelete', doc = 'Text that a rewrite would replace.' },
  { name = 'StopgapNew', default = 'DiffAdd', doc = 'Text of a finished rewrite.' },
  { name = 'StopgapNext', default = 'DiffText', doc = 'The change of several that comes next.' },
  { name = 'StopgapSettled', default = 'Normal', doc = 'Text of a draft that has stopped changing, and what a rewrite keeps.' },
  { name = 'StopgapNoise', default = 'NonText', doc = 'Text of a draft that still changes.' },
}

---@param entries stopgap.Entry[]
---@return table<string, stopgap.Entry>
local function by_name(entries)
  local found = {}
  for _, entry in ipairs(entries) do
    found[entry.name] = entry
  end
  return found
end

---The defaults, as a table of their own.
---@return stopgap.Config
function M.defaults()
  local values = { keys = {} }
  for _, option in ipairs(M.options) do
    values[option.name] = vim.deepcopy(option.default)
  end
  for _, key in ipairs(M.keys) do
    values.keys[key.name] = key.default
  end
  return values
end

---What is in force.
---@type stopgap.Config
M.values = M.defaults()

---@param entry stopgap.Entry?
---@param name string
---@param value any
---@return string? complaint
local function wrong(entry, name, value)
  if not entry then
    return ('stopgap: there is no option %s; see :help stopgap-options'):format(name)
  end
  if entry.type and not vim.list_contains(vim.split(entry.type, '|'), type(value)) then
    return ('stopgap: option %s: a %s was expected'):format(name, entry.type)
  end
  if entry.values and not vim.list_contains(entry.values, value) then
    return ('stopgap: option %s: one of %s was expected'):format(name, table.concat(entry.values, ', '))
  end
end

---The defaults with what the user gave. A wrong entry changes nothing.
---@param given table<string, any>?
---@return stopgap.Config
---@return string[] complaints one line each
function M.merged(given)
  local values, complaints = M.defaults(), {}
  local options, keys = by_name(M.options), by_name(M.keys)
  for name, value in pairs(given or {}) do
    local complaint = wrong(options[name], name, value)
    if complaint then
      complaints[#complaints + 1] = complaint
    elseif name ~= 'keys' then
      values[name] = value
    else
      for key, lhs in pairs(value) do
        complaint = wrong(keys[key] and { name = key, doc = '', type = 'string|boolean' }, 'keys.' .. key, lhs)
        if complaint or lhs == true then
          complaints[#complaints + 1] = complaint or ('stopgap: option keys.%s: a key or false was expected'):format(key)
        else
          values.keys[key] = lhs
        end
      end
    end
  end
  table.sort(complaints)
  return values, complaints
end

return M
