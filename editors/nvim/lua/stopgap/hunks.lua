---Changes to a text, taken one by one. Offsets are bytes of the text as it is now, from 0, which moves on with every
---hunk that is accepted. Knows no buffers and no protocol.
local M = {}

---@class stopgap.Edit
---@field start integer
---@field stop integer the first byte behind it
---@field text string what is put in its place

---Edits that belong together, ascending and apart from one another; never empty.
---@alias stopgap.Hunk stopgap.Edit[]

---Edits on the same line or on lines that touch are one hunk: a user judges lines, not tokens.
---@param text string
---@param edits stopgap.Edit[]
---@return stopgap.Hunk[]
function M.grouped(text, edits)
  edits = vim.list_slice(edits)
  table.sort(edits, function(a, b)
    return a.start < b.start
  end)
  local hunks = {}
  for _, edit in ipairs(edits) do
    local last = hunks[#hunks]
    local _, breaks = text:sub((last and last[#last].stop or 0) + 1, edit.start):gsub('\n', '')
    if last and breaks < 2 then
      last[#last + 1] = edit
    else
      hunks[#hunks + 1] = { edit }
    end
  end
  return hunks
end

---@param hunks stopgap.Hunk[]
---@return stopgap.Edit[]
function M.flat(hunks)
  local edits = {}
  for _, hunk in ipairs(hunks) do
    vim.list_extend(edits, hunk)
  end
  return edits
end

---The text with edits applied.
---@param text string
---@param edits stopgap.Edit[]
---@return string
function M.applied(text, edits)
  local pieces, at = {}, 0
  for _, edit in ipairs(edits) do
    vim.list_extend(pieces, { text:sub(at + 1, edit.start), edit.text })
    at = edit.stop
  end
  return table.concat(pieces) .. text:sub(at + 1)
end

---@param edits stopgap.Edit[]
---@return integer bytes by which they make the text longer
function M.growth(edits)
  local moved = 0
  for _, edit in ipairs(edits) do
    moved = moved + #edit.text - (edit.stop - edit.start)
  end
  return moved
end

---The other hunks once hunk `index` has been applied to the text.
---@param hunks stopgap.Hunk[]
---@param index integer
---@return stopgap.Hunk[]
function M.after_accepting(hunks, index)
  local moved, left = M.growth(hunks[index]), {}
  for i, hunk in ipairs(hunks) do
    if i < index then
      left[#left + 1] = hunk
    elseif i > index then
      left[#left + 1] = vim.tbl_map(function(edit)
        return { start = edit.start + moved, stop = edit.stop + moved, text = edit.text }
      end, hunk)
    end
  end
  return left
end

return M
