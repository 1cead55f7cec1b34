-- Replays one request, and reports as a line of JSON. Each time it has another id and another trace, as behind a proxy: a
-- server that knows a head again must not be flattered by one that is always the same.
-- Arguments after "--": the file that holds the request.
-- Its forms are made once, in init, so that wrk does nothing but choose while it measures.

local FORMS = 64
local forms, turn = {}, 0

init = function(args)
  local file = assert(io.open(args[1], "rb"))
  local text = file:read("*a")
  file:close()
  local head_ends = text:find("\r\n\r\n", 1, true)
  local head, rest = text:sub(1, head_ends - 1), text:sub(head_ends)
  for form = 1, FORMS do
    local digits = string.format("%06x", form * 260111)
    local own = head:gsub("(X%-Request%-ID: )%x%x%x%x%x%x", "%1" .. digits)
    own = own:gsub("(traceparent: %x+%-)%x%x%x%x%x%x", "%1" .. digits)
    forms[form] = own .. rest
  end
end

request = function()
  turn = turn % FORMS + 1
  return forms[turn]
end

done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
