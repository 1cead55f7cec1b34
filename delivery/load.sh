#!/usr/bin/env bash
# Sends scoring requests for a while, prints what hey measured, and fails when an answer was not 200 or did not come.
#
#     [DURATION=10] [CONNECTIONS=16] [RATE=0] [TOKEN=…] delivery/load.sh HEY URL BODY
#
# BODY is a file. DURATION in seconds, at most 600, and CONNECTIONS at most 1,000: this is for one look, not for days. RATE is
# requests a second over all connections; 0: as many as it can. TOKEN is sent as a bearer token; the list of processes shows it.
set -euo pipefail

hey=$1 url=$2 body=$3
duration=${DURATION:-10} connections=${CONNECTIONS:-16} rate=${RATE:-0}

check() { # check NAME VALUE LEAST MOST
    if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        echo "$1 must be a whole number from $3 to $4, not '$2'" >&2
        exit 2
    fi
}
check DURATION "$duration" 1 600
check CONNECTIONS "$connections" 1 1000
check RATE "$rate" 0 1000000
[[ -r $body ]] || { echo "BODY must be a file that can be read, not '$body'" >&2; exit 2; }

options=(-z "${duration}s" -c "$connections" -m POST -T application/json -D "$body")
# hey limits each connection, not all together.
((rate == 0)) || options+=(-q "$(((rate + connections - 1) / connections))")
[[ -z ${TOKEN:-} ]] || options+=(-H "Authorization: Bearer $TOKEN")

report=$("$hey" "${options[@]}" "$url")
printf '%s\n' "$report"
# hey 0.1.5 exits with 0 whatever it was answered.
[[ $report == *"[200]"* ]] || { echo "no request was answered 200" >&2; exit 1; }
if grep -qE '^ *\[[^2]..\]|^Error distribution' <<<"$report"; then
    echo "not every request was answered 200" >&2
    exit 1
fi
