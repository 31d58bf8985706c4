---A rewrite before it is applied: the draft refines below the untouched text, then the user decides.
---One at a time. Any change of the buffer drops it: what it would replace is no longer what was asked about.
local client = require('stopgap.client')
local config = require('stopgap.config')
local text = require('stopgap.text')

local api = vim.api
local M = {}
local namespace = api.nvim_create_namespace('stopgap.preview')
local MAX_LINES = 200

---@class stopgap.Preview
---@field buf integer
---@field tick integer of the buffer that was asked about
---@field params table of `stopgap/fill`, to ask again
---@field token string
---@field cancel fun()
---@field result? table what the server answered
---@field kept table<string, table> mappings of the buffer that the preview's keys hide
---@field group integer

---@type stopgap.Preview?
local current = nil
local tokens = 0

local actions = {
  preview_accept = 'accept',
  preview_reject = 'reject',
  preview_again = 'again',
}

---@return string
local function key_hint()
  local keys, words = config.values.keys, {}
  for _, pair in ipairs({ { 'preview_accept', 'accept' }, { 'preview_reject', 'reject' }, { 'preview_again', 'again' } }) do
    words[#words + 1] = ('%s %s'):format(keys[pair[1]] or ':Stopgap', pair[2])
  end
  return table.concat(words, ' · ')
end

---The lines of the buffer that an LSP range touches, with the text before and behind the range.
---@param range table
---@return integer first row
---@return integer last row
---@return string before
---@return string after
local function around(range)
  local encoding = assert(client.get()).offset_encoding
  local first, last = range.start.line, range['end'].line
  local lines = api.nvim_buf_get_lines(current.buf, first, last + 1, false)
  local head, foot = lines[1] or '', lines[last - first + 1] or ''
  return first, math.min(last, api.nvim_buf_line_count(current.buf) - 1),
    head:sub(1, text.byte_of(head, range.start.character, encoding)),
    foot:sub(text.byte_of(foot, range['end'].character, encoding) + 1)
end

---@param title string
---@param first integer
---@param last integer
---@param lines stopgap.Chunk[][]
local function paint(title, first, last, lines)
  local buf = current.buf
  api.nvim_buf_clear_namespace(buf, namespace, 0, -1)
  for row = first, last do
    api.nvim_buf_set_extmark(buf, namespace, row, 0, { line_hl_group = 'StopgapOld' })
  end
  lines = vim.list_slice(lines, 1, MAX_LINES)
  table.insert(lines, 1, { { title, 'StopgapHint' } })
  api.nvim_buf_set_extmark(buf, namespace, last, 0, { virt_lines = lines })
end

---@param draft table see `stopgap/draft`
local function on_draft(draft)
  local first, last, before, after = around(draft.range)
  local title = ('stopgap: step %d of %d · %s stop'):format(draft.step, draft.steps,
    config.values.keys.preview_reject or ':Stopgap reject')
  paint(title, first, last, text.draft_lines(before, draft.text, after, draft.settled))
end

---@param result table see `stopgap/fill`
local function on_result(result)
  current.result = result
  local first, last, before, after = around(result.range)
  local lines = {}
  for i, line in ipairs(vim.split(before .. result.text:gsub('\r\n', '\n') .. after, '\n', { plain = true })) do
    lines[i] = { { text.printable(line), 'StopgapNew' } }
  end
  paint(('stopgap: %s'):format(key_hint()), first, last, lines)
end

local function map_keys()
  for name, action in pairs(actions) do
    local lhs = config.values.keys[name]
    if lhs then
      local before = vim.fn.maparg(lhs, 'n', false, true)
      current.kept[lhs] = before.buffer == 1 and before or {}
      vim.keymap.set('n', lhs, M[action], { buffer = current.buf, nowait = true, desc = 'stopgap: ' .. action })
    end
  end
end

---Take everything of the preview away.
local function clear()
  local gone = current
  current = nil
  if not gone then
    return
  end
  gone.cancel()
  client.drafts[gone.token] = nil
  api.nvim_del_augroup_by_id(gone.group)
  if not api.nvim_buf_is_valid(gone.buf) then
    return
  end
  api.nvim_buf_clear_namespace(gone.buf, namespace, 0, -1)
  for lhs, before in pairs(gone.kept) do
    pcall(vim.keymap.del, 'n', lhs, { buffer = gone.buf })
    if not vim.tbl_isempty(before) then
      api.nvim_buf_call(gone.buf, function()
        vim.fn.mapset('n', false, before)
      end)
    end
  end
end

---@return stopgap.Preview?
function M.open()
  return current
end

---Ask for what an action would do and show it.
---@param buf integer
---@param params table of `stopgap/fill`, without token
function M.start(buf, params)
  clear()
  tokens = tokens + 1
  local token = ('nvim-%d-%d'):format(vim.fn.getpid(), tokens)
  local group = api.nvim_create_augroup('stopgap.preview', {})
  current = {
    buf = buf, tick = api.nvim_buf_get_changedtick(buf), params = params, token = token, cancel = function() end,
    kept = {}, group = group,
  }
  local mine = current
  map_keys()
  api.nvim_create_autocmd({ 'TextChanged', 'TextChangedI', 'BufUnload' }, {
    group = group,
    buffer = buf,
    callback = function(event)
      if current == mine and (event.event == 'BufUnload' or api.nvim_buf_get_changedtick(buf) ~= mine.tick) then
        clear()
        client.say('the text changed, so the rewrite was dropped')
      end
    end,
  })
  local row = params.range['end'].line
  paint(('stopgap: asking … · %s stop'):format(config.values.keys.preview_reject or ':Stopgap reject'), row, row, {})
  client.drafts[token] = function(draft)
    if current == mine and not mine.result then
      on_draft(draft)
    end
  end
  local cancel = client.request('stopgap/fill', vim.tbl_extend('force', params, { token = token }), buf,
    function(result, problem)
      if current ~= mine then
        return
      elseif problem or not result or not result.edits then
        clear()
        client.say(problem or (result and result.reason) or 'nothing came back', vim.log.levels.WARN)
      elseif api.nvim_buf_get_changedtick(buf) ~= mine.tick then
        clear()
        client.say('the text changed, so the rewrite was dropped')
      else
        on_result(result)
      end
    end)
  if current == mine then
    mine.cancel = cancel
  end
end

---Apply the rewrite as one undo step. While the model still works there is nothing to apply.
function M.accept()
  local mine = current
  local server = client.get()
  if not mine or not mine.result or not server then
    client.say(mine and 'the rewrite is not finished' or 'there is no rewrite to accept')
    return
  end
  local result = mine.result
  clear()
  vim.lsp.util.apply_text_edits(result.edits, mine.buf, server.offset_encoding)
  client.notify('stopgap/didAccept', {
    fill = result.fill,
    language = vim.bo[mine.buf].filetype,
    characters = vim.fn.strchars(result.text),
  })
end

---Drop the rewrite, or stop the model.
function M.reject()
  local mine = current
  clear()
  if mine and mine.result then
    client.notify('stopgap/didReject', { fill = mine.result.fill, language = vim.bo[mine.buf].filetype })
  end
end

---Ask again, with another seed.
function M.again()
  if current then
    local params = vim.tbl_extend('force', current.params, { seed = (current.params.seed or 0) + 1 })
    M.start(current.buf, params)
  else
    client.say('there is no rewrite to try again')
  end
end

return M
