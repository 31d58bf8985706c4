---A rewrite before it is applied: the draft refines below the untouched text, then the user decides, on all of it or
---change by change. One at a time. Any other change of the buffer drops it: what it would replace is no longer what was
---asked about.
local client = require('stopgap.client')
local config = require('stopgap.config')
local hunks = require('stopgap.hunks')
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
---@field left stopgap.Hunk[] what is still to decide, the one that comes next first
---@field span [integer, integer] bytes of the buffer's text that the rewrite is about
---@field kept table<string, table> mappings of the buffer that the preview's keys hide
---@field group integer

---@type stopgap.Preview?
local current = nil
local tokens = 0

local actions = {
  preview_accept = 'accept',
  preview_reject = 'reject',
  preview_again = 'again',
  preview_accept_hunk = 'accept_hunk',
  preview_skip_hunk = 'skip_hunk',
}

---@return string
local function key_hint()
  local keys, words = config.values.keys, {}
  local function add(key, command, what)
    words[#words + 1] = ('%s %s'):format(keys[key] or ':Stopgap ' .. command, what)
  end
  local several = #current.left > 1
  add('preview_accept', 'accept', several and 'accept all' or 'accept')
  if several then
    add('preview_accept_hunk', 'accept hunk', ('this one (%d left)'):format(#current.left))
    add('preview_skip_hunk', 'reject hunk', 'skip it')
  end
  add('preview_reject', 'reject', 'reject')
  add('preview_again', 'again', 'again')
  return table.concat(words, ' · ')
end

---@param buf integer
---@return string its lines, with line feeds between them
local function content(buf)
  return table.concat(api.nvim_buf_get_lines(buf, 0, -1, false), '\n')
end

---The byte at which a position of the protocol is in a buffer's text.
---@param lines string[]
---@param position table
---@param encoding string
---@return integer
local function offset(lines, position, encoding)
  local at = 0
  for row = 1, math.min(position.line, #lines) do
    at = at + #lines[row] + 1
  end
  local line = lines[position.line + 1]
  return line and at + text.byte_of(line, position.character, encoding) or math.max(at - 1, 0)
end

---@param before string
---@param at integer
---@return integer row from 0
---@return integer column in bytes
local function place(before, at)
  local head = before:sub(1, at)
  local _, row = head:gsub('\n', '')
  return row, #head:match('[^\n]*$')
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
---@param touched? table<integer, boolean> rows that would change; all of them if not given
local function paint(title, first, last, lines, touched)
  local buf = current.buf
  api.nvim_buf_clear_namespace(buf, namespace, 0, -1)
  for row = first, last do
    if not touched or touched[row] then
      api.nvim_buf_set_extmark(buf, namespace, row, 0, { line_hl_group = 'StopgapOld' })
    end
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

---Show what is left to decide, the change that comes next in a colour of its own.
local function show()
  local mine = current
  local now = content(mine.buf)
  local first = place(now, mine.span[1])
  local last = place(now, mine.span[2])
  local start = mine.span[1] - select(2, place(now, mine.span[1]))
  local stop = (now:find('\n', mine.span[2] + 1, true) or #now + 1) - 1
  local pieces, touched, at = {}, {}, start
  for i, hunk in ipairs(mine.left) do
    for _, edit in ipairs(hunk) do
      pieces[#pieces + 1] = { now:sub(at + 1, edit.start), 'StopgapSettled' }
      pieces[#pieces + 1] = { edit.text, i == 1 and #mine.left > 1 and 'StopgapNext' or 'StopgapNew' }
      at = edit.stop
      for row = place(now, edit.start), (place(now, edit.stop)) do
        touched[row] = true
      end
    end
  end
  pieces[#pieces + 1] = { now:sub(at + 1, stop), 'StopgapSettled' }
  paint(('stopgap: %s'):format(key_hint()), first, last, text.lines_of(pieces), touched)
end

---@param result table see `stopgap/fill`
local function on_result(result)
  local encoding = assert(client.get()).offset_encoding
  local lines = api.nvim_buf_get_lines(current.buf, 0, -1, false)
  local edits = vim.tbl_map(function(edit)
    return {
      start = offset(lines, edit.range.start, encoding),
      stop = offset(lines, edit.range['end'], encoding),
      text = (edit.newText:gsub('\r\n', '\n')),
    }
  end, result.edits)
  current.result = result
  current.left = hunks.grouped(table.concat(lines, '\n'), edits)
  current.span = { offset(lines, result.range.start, encoding), offset(lines, result.range['end'], encoding) }
  show()
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
    kept = {}, group = group, left = {}, span = { 0, 0 },
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
      elseif #result.edits == 0 then
        clear()
        client.say('the rewrite is what stands there already')
      else
        on_result(result)
      end
    end)
  if current == mine then
    mine.cancel = cancel
  end
end

---@param method string
---@param mine stopgap.Preview
---@param edits stopgap.Edit[]
local function tell(method, mine, edits)
  local characters = 0
  for _, edit in ipairs(edits) do
    characters = characters + vim.fn.strchars(edit.text)
  end
  client.notify(method, { fill = mine.result.fill, language = vim.bo[mine.buf].filetype, characters = characters })
end

---Change the buffer, as one undo step.
---@param buf integer
---@param edits stopgap.Edit[]
local function apply(buf, edits)
  local now = content(buf)
  local changes = vim.tbl_map(function(edit)
    local row, column = place(now, edit.start)
    local last, behind = place(now, edit.stop)
    return {
      range = { start = { line = row, character = column }, ['end'] = { line = last, character = behind } },
      newText = edit.text,
    }
  end, edits)
  vim.lsp.util.apply_text_edits(changes, buf, 'utf-8')
end

---The finished preview, or nothing, which is said.
---@return stopgap.Preview?
local function finished()
  if not current or not current.result then
    client.say(current and 'the rewrite is not finished' or 'there is no rewrite to accept')
    return nil
  end
  return current
end

---Apply what is left of the rewrite. While the model still works there is nothing to apply.
function M.accept()
  local mine = finished()
  if mine then
    local edits = hunks.flat(mine.left)
    clear()
    apply(mine.buf, edits)
    tell('stopgap/didAccept', mine, edits)
  end
end

---A range of the protocol once edits have been applied to the buffer by `change`. A cursor stays one.
---@param buf integer
---@param range table
---@param edits stopgap.Edit[]
---@param change fun()
---@return table range
local function followed(buf, range, edits, change)
  local encoding = assert(client.get()).offset_encoding
  local lines = api.nvim_buf_get_lines(buf, 0, -1, false)
  local bounds = { start = offset(lines, range.start, encoding), ['end'] = offset(lines, range['end'], encoding) }
  local moved = vim.deepcopy(bounds)
  for _, edit in ipairs(edits) do
    local by = hunks.growth({ edit })
    moved.start = moved.start + (edit.stop <= bounds.start and by or 0)
    moved['end'] = moved['end'] + (edit.start <= bounds['end'] and by or 0)
  end
  if bounds.start == bounds['end'] then
    moved['end'] = moved.start
  end
  change()
  local now = content(buf)
  return vim.tbl_map(function(at)
    local row, column = place(now, at)
    local line = api.nvim_buf_get_lines(buf, row, row + 1, false)[1] or ''
    return { line = row, character = text.unit_of(line, column, encoding) }
  end, moved)
end

---Apply the change that comes next; the others stay to be decided.
function M.accept_hunk()
  local mine = finished()
  if mine then
    local hunk = mine.left[1]
    local range = followed(mine.buf, mine.params.range, hunk, function()
      apply(mine.buf, hunk)
    end)
    mine.params = vim.tbl_extend('force', mine.params, { range = range })
    tell('stopgap/didAcceptPartially', mine, hunk)
    mine.left = hunks.after_accepting(mine.left, 1)
    mine.span[2] = mine.span[2] + hunks.growth(hunk)
    mine.tick = api.nvim_buf_get_changedtick(mine.buf)
    M.remain()
  end
end

---Leave the change that comes next out.
function M.skip_hunk()
  local mine = finished()
  if mine then
    table.remove(mine.left, 1)
    M.remain()
  end
end

---Show the rest, or end where everything has been decided.
function M.remain()
  if #current.left == 0 then
    clear()
  else
    show()
  end
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
