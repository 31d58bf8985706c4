---One candidate of the server: how it is read, and what of it is left once more has been typed.
---Knows nothing of what is shown or when.
local text = require('stopgap.text')

local api = vim.api
local M = {}

---@class stopgap.Item one candidate
---@field text string replaces the buffer's text from `row`, `start` on
---@field row integer
---@field start integer bytes
---@field tail integer bytes of the cursor's line behind what the text replaces
---@field fill? integer the daemon's number of it
---@field language? string

---Read an item of `textDocument/inlineCompletion`.
---@param buf integer
---@param item table
---@param encoding string
---@return stopgap.Item
function M.read(buf, item, encoding)
  local arguments = item.command and item.command.arguments or {}
  local cursor = api.nvim_win_get_cursor(0)
  local row, start, stop = cursor[1] - 1, cursor[2], cursor[2]
  local line = api.nvim_buf_get_lines(buf, row, row + 1, false)[1] or ''
  if item.range then
    row = item.range.start.line
    line = api.nvim_buf_get_lines(buf, row, row + 1, false)[1] or ''
    start = text.byte_of(line, item.range.start.character, encoding)
    stop = text.byte_of(line, item.range['end'].character, encoding)
  end
  local inserted = type(item.insertText) == 'table' and item.insertText.value or item.insertText
  inserted = inserted:gsub('\r\n', '\n') -- lines of a buffer end alike, whatever the file has
  local fill, language = arguments[1], arguments[2]
  return { text = inserted, row = row, start = start, tail = #line - stop, fill = fill, language = language }
end

---What of an item is not typed yet, the text behind the cursor that it replaces, and whether the indentation
---typed differs from the item's; nil if it does not fit the buffer any more.
---@param item stopgap.Item
---@param buf integer
---@return string? rest
---@return string over
---@return boolean reindents
function M.rest(item, buf)
  local cursor = api.nvim_win_get_cursor(0)
  local row, col = cursor[1] - 1, cursor[2]
  local line = api.nvim_get_current_line()
  if row < item.row or (row == item.row and col < item.start) or #line - item.tail < col then
    return nil, '', false
  end
  local ok, typed_lines = pcall(api.nvim_buf_get_text, buf, item.row, item.start, row, col, {})
  if not ok then
    return nil, '', false
  end
  local typed, rest, reindents = table.concat(typed_lines, '\n'), nil, false
  if vim.startswith(item.text, typed) then
    rest = item.text:sub(#typed + 1)
  elseif row == item.row then
    local bare, wanted = typed:gsub('^[ \t]+', ''), item.text:gsub('^[ \t]+', '')
    if vim.startswith(wanted, bare) then
      rest, reindents = wanted:sub(#bare + 1), true
    end
  end
  local over = line:sub(col + 1, #line - item.tail)
  if not rest or rest == over or not text.subsequence(over, rest) then
    return nil, '', false
  end
  return rest, over, reindents
end

return M
