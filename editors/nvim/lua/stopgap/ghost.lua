---Ghost text of our own: what is shown, whether it still fits what has been typed, and how it is taken.
---Knows nothing of when to ask; `inline` does. There is at most one, in the current buffer.
local client = require('stopgap.client')
local items = require('stopgap.item')
local text = require('stopgap.text')

local api = vim.api
local M = {}
local namespace = api.nvim_create_namespace('stopgap.ghost')

---@class stopgap.Ghost
---@field buf integer
---@field items stopgap.Item[]
---@field index integer
---@field invoked boolean whether it was asked for by hand

---@type stopgap.Ghost?
local current = nil
---Called when a ghost text goes away, for any reason.
---@type fun(buf: integer)
M.on_gone = function() end

---@param rest string
---@param over string text behind the cursor that `rest` contains
---@param hint string
local function paint(buf, rest, over, hint)
  local cursor = api.nvim_win_get_cursor(0)
  local row, col = cursor[1] - 1, cursor[2]
  local lines = vim.split(rest, '\n', { plain = true })
  local behind = api.nvim_get_current_line():sub(col + 1)
  local function mark(at, options)
    api.nvim_buf_set_extmark(buf, namespace, row, at, vim.tbl_extend('force', { hl_mode = 'combine' }, options))
  end
  local places = text.subsequence(over, lines[1])
  if #lines == 1 and places then
    -- What stands behind the cursor stays where it is; the new text appears around it.
    local from, at = 1, col
    for i, place in ipairs(vim.list_extend(places, { #lines[1] + 1 })) do
      local piece = text.printable(lines[1]:sub(from, place - 1))
      if piece ~= '' then
        mark(at, { virt_text = { { piece, 'StopgapGhost' } }, virt_text_pos = 'inline' })
      end
      from, at = place + 1, col + i
    end
    if hint ~= '' then
      mark(col + #behind, { virt_text = { { hint, 'StopgapHint' } }, virt_text_pos = 'inline' })
    end
    return
  end
  local chunks = {}
  for i = 2, #lines do
    chunks[i - 1] = { { text.printable(lines[i]), 'StopgapGhost' } }
  end
  if hint ~= '' then
    table.insert(chunks[#chunks], { hint, 'StopgapHint' })
  end
  local first = text.printable(lines[1])
  if behind ~= '' then -- it moves to the end of the last line: covered here, shown there
    local blank = math.max(vim.fn.strdisplaywidth(behind) - vim.fn.strdisplaywidth(first), 0)
    mark(col, { virt_text = { { first, 'StopgapGhost' }, { (' '):rep(blank), 'Normal' } }, virt_text_pos = 'overlay' })
    table.insert(chunks[#chunks], 2, { behind:sub(#over + 1), 'Normal' })
  elseif first ~= '' then
    mark(col, { virt_text = { { first, 'StopgapGhost' } }, virt_text_pos = 'inline' })
  end
  mark(col, { virt_lines = chunks })
end

---Whether ghost text of ours is shown in the buffer.
---@param buf? integer
---@return stopgap.Ghost?
function M.shown(buf)
  return current and (not buf or current.buf == buf) and current or nil
end

---Whether there is ghost text here that still fits what has been typed.
---@return boolean
function M.fits()
  return current ~= nil
    and current.buf == api.nvim_get_current_buf()
    and items.rest(current.items[current.index], current.buf) ~= nil
end

function M.hide()
  local gone = current
  if gone then
    current = nil
    if api.nvim_buf_is_valid(gone.buf) then
      api.nvim_buf_clear_namespace(gone.buf, namespace, 0, -1)
    end
    M.on_gone(gone.buf)
  end
end

---Show what is left of the ghost text after typing, or hide it if something else was typed.
---@return boolean whether it is still shown
function M.refresh()
  if not current then
    return false
  end
  local rest, over = nil, ''
  if current.buf == api.nvim_get_current_buf() then
    rest, over = items.rest(current.items[current.index], current.buf)
  end
  if not rest then
    M.hide()
    return false
  end
  api.nvim_buf_clear_namespace(current.buf, namespace, 0, -1)
  local several = current.invoked and #current.items > 1
  paint(current.buf, rest, over, several and (' (%d/%d)'):format(current.index, #current.items) or '')
  return true
end

---@param buf integer
---@param candidates stopgap.Item[]
---@param invoked boolean
---@param index? integer
---@return boolean whether anything of them fits
function M.show(buf, candidates, invoked, index)
  M.hide()
  local fitting = vim.tbl_filter(function(item)
    return items.rest(item, buf) ~= nil
  end, candidates)
  if #fitting == 0 then
    return false
  end
  current = { buf = buf, items = fitting, index = math.min(index or 1, #fitting), invoked = invoked }
  return M.refresh()
end

---@param count integer
function M.cycle(count)
  if current then
    current.index = (current.index - 1 + count) % #current.items + 1
    M.refresh()
  end
end

---Close the undo block, so that what comes next is one step of its own.
function M.break_undo()
  vim.cmd('let &g:undolevels = &g:undolevels')
end

---Take the ghost text, all or the next part of it.
---@param part "all"|"word"|"line"
---@return boolean whether there was any
function M.accept(part)
  if not current or not M.refresh() then
    return false
  end
  local buf, item = current.buf, current.items[current.index]
  local rest, over, reindents = items.rest(item, buf)
  ---@cast rest string
  local length = part == 'word' and text.word_length(rest) or part == 'line' and text.line_length(rest) or #rest
  local whole = length == #rest
  local cursor = api.nvim_win_get_cursor(0)
  local row, col = cursor[1] - 1, cursor[2]
  local from_row, from, new = row, col, rest:sub(1, length)
  if reindents then
    from_row, from, new = item.row, item.start, item.text:sub(1, #item.text - #rest + length)
  end
  local lines = vim.split(new, '\n', { plain = true })
  M.break_undo()
  api.nvim_buf_set_text(buf, from_row, from, row, whole and col + #over or col, lines)
  api.nvim_win_set_cursor(0, { from_row + #lines, (#lines == 1 and from or 0) + #lines[#lines] })
  M.break_undo()
  M.tell(whole and 'stopgap/didAccept' or 'stopgap/didAcceptPartially', item, vim.fn.strchars(rest:sub(1, length)))
  if whole then
    M.hide()
  else
    M.refresh()
  end
  return true
end

---Hide the ghost text because the user does not want it.
---@return boolean whether there was any
function M.dismiss()
  if not current then
    return false
  end
  M.tell('stopgap/didReject', current.items[current.index])
  M.hide()
  return true
end

---Tell the server what became of an item; it is counted on this machine, without its text.
---@param event string
---@param item stopgap.Item
---@param characters? integer
function M.tell(event, item, characters)
  if item.fill then
    client.notify(event, { fill = item.fill, language = item.language, characters = characters })
  end
end

return M
