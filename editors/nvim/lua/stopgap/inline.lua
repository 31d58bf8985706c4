---When to ask for ghost text, and who shows it. What is shown is `ghost`'s business, or `builtin`'s.
local builtin = require('stopgap.builtin')
local client = require('stopgap.client')
local config = require('stopgap.config')
local ghost = require('stopgap.ghost')
local items = require('stopgap.item')

local api = vim.api
local M = {}

local INVOKED, AUTOMATIC = 1, 2
local timer = assert(vim.uv.new_timer())
---Ends the request under way.
---@type fun()?
local cancel = nil
---Where the newest request was made, so that two events of one keystroke make one.
local asked = ''

---@param buf integer
---@return boolean
function M.enabled(buf)
  local here = vim.b[buf].stopgap_enabled
  if here == nil then
    return config.values.enabled
  end
  return here
end

---Switch ghost text on or off, in a buffer or (without one) everywhere.
---@param on boolean
---@param buf? integer
function M.enable(on, buf)
  if buf then
    vim.b[buf].stopgap_enabled = on
  else
    config.values.enabled = on
    for _, one in ipairs(api.nvim_list_bufs()) do
      vim.b[one].stopgap_enabled = nil
    end
  end
  if not on then
    M.stop()
    ghost.hide()
  end
  M.refresh_builtin()
  vim.cmd.redrawstatus({ bang = true })
end

---Whether ghost text is to appear while typing.
---@param buf integer
local function automatic(buf)
  return M.enabled(buf) and config.values.automatic
end

---Switch the builtin one as the settings are, in every buffer of ours.
function M.refresh_builtin()
  local server = client.get()
  if vim.lsp.inline_completion and server then
    for buf in pairs(server.attached_buffers) do
      builtin.enable(buf, builtin.wanted() and automatic(buf) and not ghost.shown(buf))
    end
  end
end

local function place()
  local cursor = api.nvim_win_get_cursor(0)
  local buf = api.nvim_get_current_buf()
  return ('%d %d %d %d'):format(buf, api.nvim_buf_get_changedtick(buf), cursor[1], cursor[2])
end

---Forget the request under way and the one that waits for a pause.
function M.stop()
  timer:stop()
  asked = ''
  if cancel then
    cancel()
    cancel = nil
  end
end

---@param kind integer
---@param on_items fun(candidates: stopgap.Item[])
local function ask(kind, on_items)
  M.stop()
  local buf = api.nvim_get_current_buf()
  local server = client.attached(buf)
  if not server then
    return
  end
  local params = vim.lsp.util.make_position_params(0, server.offset_encoding)
  ---@diagnostic disable-next-line: inject-field
  params.context = { triggerKind = kind }
  asked = place()
  local then_asked = asked
  cancel = client.request('textDocument/inlineCompletion', params, buf, function(result, problem)
    cancel = nil
    if problem or type(result) ~= 'table' or then_asked ~= place() or api.nvim_get_mode().mode:sub(1, 1) ~= 'i' then
      return
    end
    on_items(vim.tbl_map(function(item)
      return items.read(buf, item, server.offset_encoding)
    end, result.items or result))
  end)
end

---The cursor moved or the text changed in insert mode.
local function on_move()
  if ghost.refresh() then
    return
  end
  local buf = api.nvim_get_current_buf()
  if asked == place() then
    return
  end
  M.stop()
  if builtin.wanted() or not automatic(buf) or not client.attached(buf) then
    return
  end
  asked = place()
  timer:start(config.values.debounce_ms, 0, vim.schedule_wrap(function()
    if api.nvim_get_mode().mode:sub(1, 1) == 'i' and api.nvim_get_current_buf() == buf then
      ask(AUTOMATIC, function(candidates)
        ghost.show(buf, candidates, false)
      end)
    end
  end))
end

---Ask for several candidates now, whatever the settings are.
---@param not_this? string a text that is shown already: begin with another one
function M.trigger(not_this)
  local buf = api.nvim_get_current_buf()
  if not client.attached(buf) then
    return
  end
  ask(INVOKED, function(candidates)
    local first = 1
    for index, item in ipairs(candidates) do
      if not_this and item.text ~= not_this then
        first = index
        break
      end
    end
    builtin.enable(buf, false)
    if not ghost.show(buf, candidates, true, first) then
      M.refresh_builtin()
      api.nvim_echo({ { 'stopgap: nothing for this place (:Stopgap why)' } }, true, {})
    end
  end)
end

---Show the next candidate (or, with a negative count, the previous); the first time, ask for more than one.
---@param count integer
function M.cycle(count)
  local shown = ghost.shown(api.nvim_get_current_buf())
  if shown and shown.invoked then
    ghost.cycle(count)
  elseif shown then
    M.trigger(shown.items[shown.index].text)
  elseif not builtin.take(function(item)
    M.trigger(item.text)
  end) then
    M.trigger()
  end
end

---@return boolean
local function menu_entry_selected()
  return vim.fn.pumvisible() == 1 and vim.fn.complete_info({ 'selected' }).selected >= 0
end

---Whether `accept` would change the buffer at once, which an <expr> mapping must not do.
---@return boolean
function M.ready()
  return not menu_entry_selected() and ghost.fits()
end

---Take the ghost text, all or the next part of it. The builtin one is taken a moment later.
---@param part "all"|"word"|"line"
---@return boolean whether there was anything to accept
function M.accept(part)
  if menu_entry_selected() then
    return false
  elseif ghost.accept(part) then
    return true
  end
  local buf = api.nvim_get_current_buf()
  return builtin.take(function(item)
    builtin.enable(buf, false)
    if ghost.show(buf, { item }, false) then
      ghost.accept(part)
    end
    M.refresh_builtin()
  end)
end

---@return boolean whether there was anything to hide
function M.dismiss()
  M.stop()
  return ghost.dismiss() or builtin.take(function(item)
    ghost.tell('stopgap/didReject', item)
  end)
end

---@param group integer
function M.setup(group)
  builtin.setup(group)
  ghost.on_gone = function()
    vim.schedule(M.refresh_builtin)
  end
  api.nvim_create_autocmd({ 'InsertEnter', 'CursorMovedI', 'TextChangedI', 'TextChangedP' }, {
    group = group,
    callback = on_move,
  })
  api.nvim_create_autocmd({ 'InsertLeave', 'BufLeave' }, {
    group = group,
    callback = function()
      M.stop()
      ghost.hide()
    end,
  })
  api.nvim_create_autocmd('LspAttach', {
    group = group,
    callback = function(event)
      local server = client.get()
      if server and event.data.client_id == server.id then
        builtin.enable(event.buf, builtin.wanted() and automatic(event.buf))
      end
    end,
  })
end

return M
