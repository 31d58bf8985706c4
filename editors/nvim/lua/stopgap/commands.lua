---`:Stopgap`: one function per word of `config.commands`.
local client = require('stopgap.client')
local config = require('stopgap.config')
local inline = require('stopgap.inline')
local preview = require('stopgap.preview')
local text = require('stopgap.text')

local api = vim.api
local M = {}

---Show lines in a window that q and <Esc> close.
---@param lines string[]
---@param title string
local function float(lines, title)
  local buf = api.nvim_create_buf(false, true)
  api.nvim_buf_set_lines(buf, 0, -1, false, lines)
  vim.bo[buf].modifiable = false
  vim.bo[buf].bufhidden = 'wipe'
  local width = math.min(100, vim.o.columns - 4)
  local height = math.max(1, math.min(#lines + 4, vim.o.lines - 6))
  api.nvim_open_win(buf, true, {
    relative = 'editor', row = 2, col = math.floor((vim.o.columns - width) / 2), width = width, height = height,
    border = 'rounded', title = ' ' .. title .. ' ', style = 'minimal',
  })
  vim.wo.wrap = true
  for _, key in ipairs({ 'q', '<Esc>' }) do
    vim.keymap.set('n', key, '<Cmd>close<CR>', { buffer = buf, nowait = true })
  end
end

---@param status stopgap.Status
local function describe(status)
  local parts = { status.state, status.model }
  if status.fraction and status.state == 'loading' then
    parts[1] = ('loading %d%%'):format(100 * status.fraction)
  end
  parts[3] = status.message
  return table.concat(vim.tbl_filter(function(part)
    return part and part ~= '' and part ~= vim.NIL
  end, parts), ' · ')
end

---@param method string
local function ask_status(method)
  client.request(method, vim.empty_dict(), api.nvim_get_current_buf(), function(status, problem)
    client.say(problem or describe(status), problem and vim.log.levels.ERROR or nil)
  end)
end

---The range of a command as an LSP range: a selection to the character, lines otherwise, else the cursor.
---@param buf integer
---@param options table of `nvim_create_user_command`
---@return table range
---@return boolean selected
local function range_of(buf, options)
  local server = assert(client.get())
  local function position(row, byte)
    local line = api.nvim_buf_get_lines(buf, row, row + 1, false)[1] or ''
    return { line = row, character = text.unit_of(line, byte, server.offset_encoding) }
  end
  if options.range == 0 then
    local cursor = api.nvim_win_get_cursor(0)
    local here = position(cursor[1] - 1, cursor[2])
    return { start = here, ['end'] = here }, false
  end
  local first, last = options.line1 - 1, options.line2 - 1
  local from, to = api.nvim_buf_get_mark(buf, '<'), api.nvim_buf_get_mark(buf, '>')
  if vim.fn.visualmode() == 'v' and from[1] == options.line1 and to[1] == options.line2 then
    local line = api.nvim_buf_get_lines(buf, last, last + 1, false)[1] or ''
    local stop = math.min(to[2], #line)
    stop = stop < #line and stop + #vim.fn.matchstr(line:sub(stop + 1), '^.') or stop -- the mark is on a character
    return { start = position(first, from[2]), ['end'] = position(last, stop) }, true
  end
  return { start = position(first, 0), ['end'] = position(last, math.huge) }, true
end

---@param action string
---@param options table
---@param instruction? string
local function show(action, options, instruction)
  local buf = api.nvim_get_current_buf()
  if not client.attached(buf) then
    return client.say('no language server runs for this buffer; :checkhealth stopgap', vim.log.levels.WARN)
  end
  local range, selected = range_of(buf, options)
  if action == 'rewrite' then
    action = instruction ~= '' and 'instruction' or selected and 'selection' or 'function'
  end
  preview.start(buf, {
    action = action,
    textDocument = vim.lsp.util.make_text_document_params(buf),
    range = range,
    instruction = instruction ~= '' and instruction or nil,
  })
end

---@param on fun(now: boolean): boolean
---@return fun(words: string[])
local function switch(on)
  return function(words)
    local buf = words[1] == 'buffer' and api.nvim_get_current_buf() or nil
    local now = on(buf and inline.enabled(buf) or (not buf and config.values.enabled))
    inline.enable(now, buf)
    client.say(('ghost text is %s%s'):format(now and 'on' or 'off', buf and ' in this buffer' or ''))
  end
end

---@type table<string, fun(words: string[], options: table)>
M.run = {
  enable = switch(function() return true end),
  disable = switch(function() return false end),
  toggle = switch(function(now) return not now end),
  pause = function() ask_status('stopgap/pause') end,
  resume = function() ask_status('stopgap/resume') end,
  status = function() ask_status('stopgap/status') end,
  why = function()
    client.request('stopgap/why', { last = 10 }, api.nvim_get_current_buf(), function(answer, problem)
      if problem then
        return client.say(problem, vim.log.levels.ERROR)
      end
      local lines = #answer.lines > 0 and answer.lines or { 'nothing has been asked yet' }
      float(vim.tbl_map(text.printable, lines), 'stopgap: why nothing?')
    end)
  end,
  rewrite = function(words, options) show('rewrite', options, table.concat(words, ' ')) end,
  fill = function(_, options) show('hole', options) end,
  accept = function(words) (words[1] == 'hunk' and preview.accept_hunk or preview.accept)() end,
  reject = function(words) (words[1] == 'hunk' and preview.skip_hunk or preview.reject)() end,
  again = preview.again,
  restart = function()
    preview.reject()
    local server = client.get()
    local bufs = server and vim.tbl_keys(server.attached_buffers) or { api.nvim_get_current_buf() }
    client.stop(function()
      for _, buf in ipairs(bufs) do
        if api.nvim_buf_is_valid(buf) then
          client.start(buf)
        end
      end
    end)
  end,
}

---@param options table
function M.command(options)
  local words = vim.list_slice(options.fargs)
  local name = table.remove(words, 1)
  if not M.run[name] then
    return client.say(('there is no :Stopgap %s; see :help :Stopgap'):format(name), vim.log.levels.ERROR)
  end
  M.run[name](words, options)
end

---@param lead string
---@param line string
---@return string[]
function M.complete(lead, line)
  local words = vim.split(line:gsub("^.-Stopgap!?%s+", ''), '%s+')
  local choices = {}
  if #words <= 1 then
    choices = vim.tbl_keys(M.run)
  else
    for _, command in ipairs(config.commands) do
      if command.name == words[1] and #words == 2 and not command.range then
        choices = command.args or {}
      end
    end
  end
  table.sort(choices)
  return vim.tbl_filter(function(choice)
    return vim.startswith(choice, lead)
  end, choices)
end

return M
