---What users call. `setup` starts everything; the rest is for mappings and status lines of their own.
local M = {}

---@type integer?
local group = nil

---@param options? table see |stopgap-options|
function M.setup(options)
  local config, client = require('stopgap.config'), require('stopgap.client')
  if vim.fn.has('nvim-0.10') == 0 then
    return vim.notify('stopgap needs Neovim 0.10 or newer', vim.log.levels.ERROR)
  end
  local values, complaints = config.merged(options)
  config.values = values
  for _, complaint in ipairs(complaints) do
    client.say(complaint, vim.log.levels.WARN)
  end
  for _, highlight in ipairs(config.highlights) do
    vim.api.nvim_set_hl(0, highlight.name, { link = highlight.default, default = true })
  end
  group = vim.api.nvim_create_augroup('stopgap', {})
  require('stopgap.inline').setup(group)
  require('stopgap.keys').setup()
  vim.api.nvim_create_autocmd('FileType', {
    group = group,
    callback = function(event)
      client.start(event.buf)
    end,
  })
  for _, buf in ipairs(vim.api.nvim_list_bufs()) do
    if vim.api.nvim_buf_is_loaded(buf) then
      client.start(buf)
    end
  end
end

---@return boolean
function M.is_set_up()
  return group ~= nil
end

---Take the ghost text. Not for <expr> mappings: it changes the buffer.
---@param part? "all"|"word"|"line"
---@return boolean whether there was any
function M.accept(part)
  local found = require('stopgap.inline').accept(part or 'all')
  require('stopgap.builtin').settle()
  return found
end

---@return boolean whether there was ghost text to hide
function M.dismiss()
  return require('stopgap.inline').dismiss()
end

function M.trigger()
  require('stopgap.inline').trigger()
end

function M.next()
  require('stopgap.inline').cycle(1)
end

function M.prev()
  require('stopgap.inline').cycle(-1)
end

---A few characters for a status line; empty where stopgap has nothing to do. It is redrawn on every change,
---which is also the event `User StopgapStatus`.
---@return string
function M.statusline()
  local client = require('stopgap.client')
  local buf = vim.api.nvim_get_current_buf()
  local status = client.status
  if not client.attached(buf) then
    return ''
  elseif not require('stopgap.inline').enabled(buf) then
    return 'stopgap off'
  elseif not status or status.state == 'starting' then
    return 'stopgap …'
  elseif status.state == 'loading' then
    return ('stopgap %d%%'):format(100 * (tonumber(status.fraction) or 0))
  elseif status.state == 'ready' then
    return client.busy > 0 and 'stopgap …' or 'stopgap'
  end
  return 'stopgap ' .. status.state
end

return M
