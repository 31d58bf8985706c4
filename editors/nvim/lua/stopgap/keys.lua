---Mappings of insert mode. A key that has nothing to do does what it did before.
local config = require('stopgap.config')
local inline = require('stopgap.inline')

local M = {}

---Keys we have mapped, so that a second setup can take them back.
---@type table<string, string> name of the key's entry, by key
M.mapped = {}
---Keys that belong to somebody else already.
---@type table<string, string>
M.taken = {}

---What a key was mapped to before, as a mapping of ours. Returns its left side, or the key itself.
---@param lhs string
---@return string
local function former(lhs)
  local before = vim.fn.maparg(lhs, 'i', false, true)
  if vim.tbl_isempty(before) or before.buffer == 1 then
    return lhs
  end
  local kept = '<Plug>(stopgap-former-' .. lhs:gsub('[<>]', '') .. ')'
  before.lhs = kept
  before.lhsraw = vim.api.nvim_replace_termcodes(kept, true, true, true)
  before.lhsrawalt = nil
  vim.fn.mapset('i', false, before)
  return kept
end

---@param part "all"|"word"|"line"
---@param otherwise string
---@return fun(): string
local function taking(part, otherwise)
  return function()
    if inline.ready() then
      return ("<Cmd>lua require('stopgap').accept('%s')<CR>"):format(part)
    end
    return inline.accept(part) and "<Cmd>lua require('stopgap.builtin').settle()<CR>" or otherwise
  end
end

---@type table<string, fun(lhs: string): (string|function), table?> right side and options, by the key's name
local makers = {
  accept = function(lhs)
    return taking('all', former(lhs)), { expr = true, remap = true }
  end,
  accept_word = function(lhs)
    return taking('word', lhs), { expr = true }
  end,
  accept_line = function(lhs)
    return taking('line', lhs), { expr = true }
  end,
  dismiss = function(lhs)
    local otherwise = former(lhs)
    return function()
      return inline.dismiss() and '' or otherwise
    end, { expr = true, remap = true }
  end,
  next = function()
    return "<Cmd>lua require('stopgap').next()<CR>"
  end,
  prev = function()
    return "<Cmd>lua require('stopgap').prev()<CR>"
  end,
  trigger = function()
    return "<Cmd>lua require('stopgap').trigger()<CR>"
  end,
}

---Map the keys of insert mode. Only `accept` and `dismiss` may share a key that is mapped already.
function M.setup()
  for lhs in pairs(M.mapped) do
    vim.keymap.del('i', lhs)
    local kept = vim.fn.maparg('<Plug>(stopgap-former-' .. lhs:gsub('[<>]', '') .. ')', 'i', false, true)
    if not vim.tbl_isempty(kept) then
      kept.lhs, kept.lhsraw = lhs, vim.api.nvim_replace_termcodes(lhs, true, true, true)
      vim.fn.mapset('i', false, kept)
    end
  end
  M.mapped, M.taken = {}, {}
  for _, key in ipairs(config.keys) do
    local lhs, make = config.values.keys[key.name], makers[key.name]
    if lhs and make then
      local shares = key.name == 'accept' or key.name == 'dismiss'
      if not shares and vim.fn.maparg(lhs, 'i') ~= '' then
        M.taken[lhs] = key.name
      else
        local rhs, options = make(lhs)
        options = vim.tbl_extend('force', { desc = 'stopgap: ' .. key.name:gsub('_', ' ') }, options or {})
        vim.keymap.set('i', lhs, rhs, options)
        M.mapped[lhs] = key.name
      end
    end
  end
end

return M
