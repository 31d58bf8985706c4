local math = require("math")

local Vector = {}
Vector.__index = Vector

function Vector.new(x, y)
  return setmetatable({ x = x or 0, y = y or 0 }, Vector)
end

function Vector:length()
  return math.sqrt(self.x ^ 2 + self.y ^ 2)
end

function Vector.sum(list)
  local total = Vector.new()
  for _, one in ipairs(list) do
    if one.x ~= nil then
      total = Vector.new(total.x + one.x, total.y + one.y)
    end
  end
  return total
end

return Vector
