---Only the command: everything else is loaded by it, or by `require('stopgap').setup()`.
if vim.g.loaded_stopgap then
  return
end
vim.g.loaded_stopgap = true

vim.api.nvim_create_user_command('Stopgap', function(options)
  if not require('stopgap').is_set_up() then
    require('stopgap').setup()
  end
  require('stopgap.commands').command(options)
end, {
  nargs = '+',
  range = true,
  desc = 'stopgap: see :help :Stopgap',
  complete = function(lead, line)
    return require('stopgap.commands').complete(lead, line)
  end,
})
