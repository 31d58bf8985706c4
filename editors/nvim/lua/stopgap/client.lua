---The one language server of this Neovim: start, stop, ask; and what it says of the daemon.
---All buffers share it, each root a workspace folder of it. Knows nothing of ghost text or previews.
local config = require('stopgap.config')

local M = {}

M.NAME = 'stopgap'
local ROOTS = { '.git', 'pyproject.toml', 'package.json', 'Cargo.toml', 'go.mod' }
local LANGUAGE_IDS = { cs = 'csharp', cuda = 'cuda-cpp', sh = 'shellscript', bash = 'shellscript' }

---@class stopgap.Status see `stopgap/status` in lsp/extensions.py
---@field state "starting"|"loading"|"ready"|"paused"|"offline"|"error"
---@field message string
---@field model string
---@field fraction? number of loading the model, 0..1

---@type stopgap.Status?
M.status = nil
---Requests for ghost text or a rewrite under way, for the status line.
M.busy = 0

---Who is told of a draft, by its token.
---@type table<string, fun(draft: table)>
M.drafts = {}

local missing_told = false

---The protocol's name for a filetype.
---@param filetype string
---@return string
function M.language_id(filetype)
  return LANGUAGE_IDS[filetype] or filetype
end

---@param status stopgap.Status?
local function set_status(status)
  M.status = status
  vim.api.nvim_exec_autocmds('User', { pattern = 'StopgapStatus', modeline = false })
  vim.cmd.redrawstatus({ bang = true })
end

---@param text string
---@param level? integer
function M.say(text, level)
  vim.notify(text:find('^stopgap:') and text or 'stopgap: ' .. text, level or vim.log.levels.INFO)
end

---Answers `stopgap/input`. A handler of a server's request may wait, as the one for showMessageRequest does.
local function input(_, params)
  local thread, is_main = coroutine.running()
  if not thread or is_main then
    local words = vim.fn.input(params.prompt .. ' ')
    return words ~= '' and words or vim.NIL
  end
  -- Scheduled, because many inputs answer before this coroutine waits.
  vim.ui.input({ prompt = params.prompt .. ' ' }, vim.schedule_wrap(function(words)
    coroutine.resume(thread, words or vim.NIL)
  end))
  return coroutine.yield()
end

local handlers = {
  ['stopgap/status'] = function(_, status)
    set_status(status)
  end,
  ['stopgap/draft'] = function(_, draft)
    local told = M.drafts[draft.token]
    if told then
      told(draft)
    end
  end,
  ['stopgap/input'] = input,
}

---@return vim.lsp.Client?
function M.get()
  return vim.lsp.get_clients({ name = M.NAME })[1]
end

---@param buf integer
---@return vim.lsp.Client?
function M.attached(buf)
  return vim.lsp.get_clients({ name = M.NAME, bufnr = buf })[1]
end

---Call a method of a client; until 0.11 they were functions that know their client.
---@param client vim.lsp.Client
---@param method string
local function call(client, method, ...)
  if vim.fn.has('nvim-0.11') == 1 then
    return client[method](client, ...)
  end
  return client[method](...)
end

---Whether the server can be started at all.
---@return boolean
function M.found()
  return vim.fn.executable(config.values.cmd[1]) == 1
end

---@param root string?
---@return vim.lsp.ClientConfig
local function definition(root)
  local capabilities = vim.lsp.protocol.make_client_capabilities()
  capabilities.textDocument.inlineCompletion = { dynamicRegistration = false }
  local settings = { status = true, drafts = true, input = true }
  return {
    name = M.NAME,
    cmd = config.values.cmd,
    root_dir = root,
    capabilities = capabilities,
    handlers = handlers,
    init_options = vim.tbl_extend('force', config.values.settings, settings),
    get_language_id = function(_, filetype)
      return M.language_id(filetype)
    end,
    on_exit = vim.schedule_wrap(function(code, signal)
      local ended = code == 0 or signal == 15
      local message = ('the language server ended with code %d; :Stopgap restart'):format(code)
      set_status(not ended and { state = 'offline', message = message, model = '' } or nil)
    end),
  }
end

---Attach the server to a buffer, starting it for the first one.
---@param buf integer
function M.start(buf)
  local values = config.values
  if vim.bo[buf].buftype ~= '' or not vim.list_contains(values.filetypes, vim.bo[buf].filetype) then
    return
  elseif not M.found() then
    if not missing_told then
      missing_told = true
      M.say(('%s cannot be run; install it with `pipx install stopgap`, or set the option cmd'):format(values.cmd[1]),
        vim.log.levels.WARN)
    end
    return
  end
  local root = vim.fs.root(buf, ROOTS)
  vim.lsp.start(definition(root), {
    bufnr = buf,
    reuse_client = function(client)
      return client.name == M.NAME and not call(client, 'is_stopped')
    end,
  })
  local client = M.attached(buf)
  if root and client then
    M.add_folder(client, root)
  end
end

---@param client vim.lsp.Client
---@param root string
function M.add_folder(client, root)
  local uri = vim.uri_from_fname(root)
  client.workspace_folders = client.workspace_folders or {}
  for _, folder in ipairs(client.workspace_folders) do
    if folder.uri == uri then
      return
    end
  end
  local folder = { uri = uri, name = root }
  table.insert(client.workspace_folders, folder)
  M.notify('workspace/didChangeWorkspaceFolders', { event = { added = { folder }, removed = {} } })
end

---Stop the server; `after` is called once it is gone.
---@param after? fun()
function M.stop(after)
  local client = M.get()
  if client then
    call(client, 'stop')
  end
  local tries = 0
  local function wait()
    tries = tries + 1
    client = M.get()
    if not client then
      if after then
        after()
      end
    else
      if tries == 20 then
        call(client, 'stop', true)
      end
      vim.defer_fn(wait, 50)
    end
  end
  wait()
end

---Send a request; `on_answer` gets the result or the error's message. Returns a function that cancels it:
---`on_answer` is then not called any more.
---@param method string
---@param params table
---@param buf integer
---@param on_answer fun(result: any, problem?: string)
---@return fun()
function M.request(method, params, buf, on_answer)
  local client = M.get()
  if not client then
    on_answer(nil, 'no language server runs for this buffer; :checkhealth stopgap')
    return function() end
  end
  local over = false
  local function finish()
    if not over then
      over = true
      M.busy = M.busy - 1
      return true
    end
  end
  M.busy = M.busy + 1
  local sent, id = call(client, 'request', method, params, function(problem, result)
    if finish() then
      on_answer(result, problem and (problem.message or tostring(problem)))
    end
  end, buf)
  if not sent and finish() then
    on_answer(nil, 'the language server does not answer; :Stopgap restart')
  end
  return function()
    if finish() then
      call(client, 'cancel_request', id)
    end
  end
end

---@param method string
---@param params table
function M.notify(method, params)
  local client = M.get()
  if client then
    call(client, 'notify', method, params)
  end
end

return M
