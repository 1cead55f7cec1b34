"""What the server costs beside what people would run instead of it; `make bench` and its companions run it all.

    __main__.py                    which part, how long, where the results go
    serving.py serving_report.py   part "serving": requests over HTTP, ours and the rivals in turns
    peers.py                       part "peers": the same beside KServe's server and MLServer
    kernels.py kernels_report.py   parts "kernels" and "kernel-peers": trees scored without a server
    scaling.py scaling_report.py   part "scaling": what more rows, trees, connections … cost
    upkeep.py proxy.py             packing, starts, memory · NGINX in front
    cases.py                       the requests of each case, and which server gets them
    load.py    wire.lua            wrk, replaying one request
    servers.py rivals/             processes: start, CPU, memory, stop
    engines/                       libraries that score trees, each a process in its own environment
    messages.py workload.py        one HTTP request as bytes · models and their rows
    results.py tables.py chart.py  results.md and results.json, of which a part rewrites its own section · the chart

Only engines/ours.py imports `service`: to everything else a server is a command and a port.
"""
