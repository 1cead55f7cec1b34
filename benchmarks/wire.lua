-- Replays one request, byte for byte, and reports as a line of JSON.
-- Arguments after "--": the file that holds the request.
-- Formatted once in wrk.init, so that wrk calls no Lua while it measures.

init = function(args)
  local file = assert(io.open(args[1], "rb"))
  local request = file:read("*a")
  file:close()
  wrk.format = function() return request end
end

done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
