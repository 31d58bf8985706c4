---`:checkhealth stopgap`: what has to be right for anything to appear, each line with its remedy.
local client = require('stopgap.client')
local config = require('stopgap.config')
local builtin = require('stopgap.builtin')
local keys = require('stopgap.keys')

local M = {}

---@param server vim.lsp.Client
local function check_daemon(server)
  local answer
  client.request('stopgap/status', vim.empty_dict(), 0, function(status, problem)
    answer = status or { state = 'error', message = problem }
  end)
  vim.wait(5000, function()
    return answer ~= nil
  end, 20)
  if not answer then
    return vim.health.error('the language server has not answered within 5 seconds', { ':Stopgap restart' })
  end
  local line = ('daemon: %s %s %s'):format(answer.state, answer.model or '', answer.message or '')
  if answer.state == 'offline' or answer.state == 'error' then
    vim.health.error(line, { '`stopgap daemon start` in a terminal says why' })
  elseif answer.state == 'paused' then
    vim.health.warn(line, { ':Stopgap resume' })
  else
    vim.health.ok(line)
  end
  vim.health.ok(('language server runs; positions in %s; %d buffers'):format(server.offset_encoding,
    vim.tbl_count(server.attached_buffers)))
end

local function check_keys()
  for _, key in ipairs(config.keys) do
    local lhs = key.mode == 'i' and config.values.keys[key.name]
    if lhs and keys.taken[lhs] then
      vim.health.warn(('%s (%s) was mapped already, so it is not ours'):format(lhs, key.name),
        { ("choose another: require('stopgap').setup({ keys = { %s = '…' } })"):format(key.name) })
    elseif lhs and keys.mapped[lhs] and vim.fn.maparg(lhs, 'i', false, true).desc ~= 'stopgap: '
      .. key.name:gsub('_', ' ') then
      vim.health.warn(('%s (%s) has been mapped to something else since'):format(lhs, key.name),
        { 'call setup() after the other plugin, or choose another key' })
    end
  end
end

function M.check()
  vim.health.start('stopgap')
  if not require('stopgap').is_set_up() then
    return vim.health.error('not set up', { "require('stopgap').setup()" })
  end
  local version = tostring(vim.version()):gsub('%+.*', '')
  local shower = builtin.wanted() and 'vim.lsp.inline_completion' or 'own ghost text'
  vim.health.ok(('Neovim %s; shown by: %s'):format(version, shower))
  if client.found() then
    vim.health.ok('runs: ' .. vim.fn.exepath(config.values.cmd[1]) .. ' ' .. table.concat(config.values.cmd, ' ', 2))
  else
    vim.health.error(('%s cannot be run'):format(config.values.cmd[1]),
      { '`pipx install stopgap`, then start Neovim anew', 'or set the option cmd; see :help stopgap-options' })
  end
  local server = client.get()
  if server then
    check_daemon(server)
  else
    vim.health.warn('no language server runs yet', { 'open a file of a filetype in :help stopgap-options' })
  end
  if not config.values.enabled then
    vim.health.warn('ghost text is off', { ':Stopgap enable' })
  end
  check_keys()
end

return M
