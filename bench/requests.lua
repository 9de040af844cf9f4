-- Sends prepared requests in a prepared order. A head in two parts gets a trace of its own between
-- them every time, as tracing clients send it: no two of its requests are the same.

local sent, count = 0, 0
local format = string.format

function init(args)
  dofile(args[1])
  count = #order
end

function request()
  local head = heads[order[sent % count + 1]]
  sent = sent + 1
  if head[2] == nil then
    return head[1]
  end
  return head[1] .. format("00-%032x-%016x-01", sent, sent) .. head[2]
end
