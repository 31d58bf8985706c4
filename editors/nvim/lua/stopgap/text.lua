---Text arithmetic: positions of the protocol, words, and drafts as coloured lines. Knows no buffers or windows.
local M = {}

local new_signatures = vim.fn.has('nvim-0.11') == 1

---Byte column of a position of the protocol.
---@param line string
---@param unit integer
---@param encoding "utf-8"|"utf-16"|"utf-32"
---@return integer
function M.byte_of(line, unit, encoding)
  if encoding == 'utf-8' then
    return math.min(unit, #line)
  elseif new_signatures then
    return vim.str_byteindex(line, encoding, unit, false)
  end
  local utf32, utf16 = vim.str_utfindex(line)
  return vim.str_byteindex(line, math.min(unit, encoding == 'utf-16' and utf16 or utf32), encoding == 'utf-16')
end

---The reverse of `byte_of`.
---@param line string
---@param byte integer
---@param encoding "utf-8"|"utf-16"|"utf-32"
---@return integer
function M.unit_of(line, byte, encoding)
  byte = math.min(byte, #line)
  if encoding == 'utf-8' then
    return byte
  elseif new_signatures then
    return vim.str_utfindex(line, encoding, byte, false)
  end
  local utf32, utf16 = vim.str_utfindex(line, byte)
  return encoding == 'utf-16' and utf16 or utf32
end

---Bytes of the next word of `text`, with the blanks and line breaks before it.
---@param text string
---@return integer
function M.word_length(text)
  local _, blanks = text:find('^%s*')
  local _, word = text:find('^[%w_\128-\255]+', blanks + 1)
  if not word then
    _, word = text:find('^[^%w%s_\128-\255]+', blanks + 1)
  end
  return word or #text
end

---Bytes of the next line of `text`, without the break behind it; at a line's end, that of the line below.
---@param text string
---@return integer
function M.line_length(text)
  local stop = text:find('\n', text:sub(1, 1) == '\n' and 2 or 1, true)
  return stop and stop - 1 or #text
end

---Where the characters of `few` can be found in `many`, in order: byte indices from 1, or nil if they cannot.
---@param few string
---@param many string
---@return integer[]?
function M.subsequence(few, many)
  local found, from = {}, 1
  for i = 1, #few do
    local at = many:find(few:sub(i, i), from, true)
    if not at then
      return nil
    end
    found[i], from = at, at + 1
  end
  return found
end

---@alias stopgap.Chunk [string, string] text and highlight group

---Text as virtual lines, in colours.
---@param pieces stopgap.Chunk[] may hold line breaks
---@return stopgap.Chunk[][]
function M.lines_of(pieces)
  local lines = { {} }
  for _, piece in ipairs(pieces) do
    for i, part in ipairs(vim.split(piece[1], '\n', { plain = true })) do
      if i > 1 then
        lines[#lines + 1] = {}
      end
      if part ~= '' then
        table.insert(lines[#lines], { M.printable(part), piece[2] })
      end
    end
  end
  return lines
end

---A draft as virtual lines: what has settled in one colour, what still changes in another.
---@param before string the line's text before the draft
---@param text string
---@param after string the line's text behind the draft
---@param settled [integer, integer][] utf-16 ranges of `text`, as in `stopgap/draft`
---@return stopgap.Chunk[][]
function M.draft_lines(before, text, after, settled)
  local pieces = { { before, 'StopgapSettled' } }
  local done = 0
  for _, range in ipairs(settled) do
    local from, to = M.byte_of(text, range[1], 'utf-16'), M.byte_of(text, range[2], 'utf-16')
    pieces[#pieces + 1] = { text:sub(done + 1, from), 'StopgapNoise' }
    pieces[#pieces + 1] = { text:sub(from + 1, to), 'StopgapSettled' }
    done = to
  end
  pieces[#pieces + 1] = { text:sub(done + 1), 'StopgapNoise' }
  pieces[#pieces + 1] = { after, 'StopgapSettled' }
  return M.lines_of(pieces)
end

---Text for virtual lines, which show neither tabs nor control characters as a buffer does.
---@param text string
---@return string
function M.printable(text)
  return (text:gsub('\t', (' '):rep(vim.bo.tabstop)):gsub('%c', '·'))
end

return M
