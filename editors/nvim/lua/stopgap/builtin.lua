---Neovim 0.12's own inline completion, and what it has no interface for: parts of a text, dismissal, undo.
---It shows automatic ghost text; taking any of it goes through `ghost`, so that keys do the same everywhere.
local client = require('stopgap.client')
local config = require('stopgap.config')
local ghost = require('stopgap.ghost')

local api = vim.api
local M = {}

local METHOD = 'textDocument/inlineCompletion'
---Length of the cursor's line when the newest answered request was sent, by buffer: its items' ranges end a
---fixed distance before the end of that line, however much has been typed since (neovim#36529).
---@type table<integer, integer>
local length_asked, length_answered = {}, {}
---Whether text has been taken but is not handed over yet.
local pending = false

---@return boolean
function M.wanted()
  local engine = config.values.engine
  return engine ~= 'own' and vim.lsp.inline_completion ~= nil
end

function M.setup(group)
  if not M.wanted() then
    return
  end
  api.nvim_create_autocmd('LspRequest', {
    group = group,
    callback = function(event)
      local request = event.data.request
      if request.method ~= METHOD then
        return
      elseif request.type == 'pending' then
        length_asked[event.buf] = #api.nvim_get_current_line()
      elseif request.type == 'complete' then
        length_answered[event.buf] = length_asked[event.buf]
      end
    end,
  })
end

---@param buf integer
---@param on boolean
function M.enable(buf, on)
  if vim.lsp.inline_completion and vim.lsp.inline_completion.is_enabled({ bufnr = buf }) ~= on then
    vim.lsp.inline_completion.enable(on, { bufnr = buf })
  end
end

---Hand the text that is shown to `use`, as an item of ours; the builtin one disappears. Other servers' items are
---left to the builtin one. It happens a moment later, so that an <expr> mapping may call this: `settle` waits.
---@param use fun(item: stopgap.Item)
---@return boolean whether there was any
function M.take(use)
  if not M.wanted() then
    return false
  end
  pending = vim.lsp.inline_completion.get({
    on_accept = function(item)
      pending = false
      local server = client.get()
      if not server or item.client_id ~= server.id or not item.range then
        return item
      end
      local row, start, _, stop = item.range:to_extmark()
      local inserted = type(item.insert_text) == 'table' and item.insert_text.value or item.insert_text
      inserted = inserted:gsub('\r\n', '\n')
      local arguments = item.command and item.command.arguments or {}
      local line = api.nvim_buf_get_lines(0, row, row + 1, false)[1] or ''
      local length = length_answered[api.nvim_get_current_buf()] or #line
      use({
        text = inserted,
        row = row,
        start = start,
        tail = math.max(length - stop, 0),
        fill = arguments[1],
        language = arguments[2],
      })
    end,
  })
  return pending
end

---Wait until what was taken is in the buffer: keys typed behind it must come behind it.
function M.settle()
  vim.wait(200, function()
    return not pending
  end, 1)
  pending = false
end

return M
