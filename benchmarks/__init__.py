"""What the server costs beside what people would run instead of it; `make bench` runs it all.

    __main__.py                which parts, how long, where the results go
    serving.py                 part "serving": requests over HTTP, ours and the rivals in turns
    report.py                  tables, the machine, and results.md, of which a part rewrites its own section
    cases.py                   the requests of each case, and which server gets them
    load.py    wire.lua        wrk, replaying one request
    servers.py rivals/         processes: start, CPU, memory, stop
    messages.py workload.py    one HTTP request as bytes · the model and its rows

Nothing here imports `service`: every server is a command and a port.
"""
