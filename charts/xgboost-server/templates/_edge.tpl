{{- define "xgboost-server.scoringPaths" -}}
/predict
/score
/v1/models/{{ .Values.model.name }}:predict
/v2/models/{{ .Values.model.name }}/infer
{{- end -}}

{{/* The paths that score, one a line, and the extra ones; whatever is not here does not exist for those outside. */}}
{{- define "xgboost-server.paths" -}}
{{ include "xgboost-server.scoringPaths" . }}
{{- range .Values.edge.extraPaths }}
{{ . }}
{{- end }}
{{- end -}}

{{/*
What NGINX itself refuses or cannot pass on, in the server's words: /v1 and /v2 get {"error", "code"} as application/json, all
else problem+json (docs/api.md). Answers of the server pass untouched: theirs say more, and that is why this is a snippet.
The controller's own annotation, custom-http-errors (main of 2026-08-21, not yet in 5.5.4), intercepts those too, and does
not tell its backend which status it is about.
*/}}
{{- define "xgboost-server.errorSnippet" -}}
{{- $errors := list
  (dict "status" 404 "code" "route-not-found" "detail" (printf "no such path; expected %s" (include "xgboost-server.scoringPaths" . | splitList "\n" | join ", ")))
  (dict "status" 413 "code" "payload-too-large" "detail" (printf "the body is larger than %d bytes; send fewer rows a request" (int64 .Values.server.maxBodyBytes)))
  (dict "status" 429 "code" "rate-limited" "detail" "too many requests from this caller; come back after the seconds of Retry-After")
  (dict "status" 502 "code" "bad-gateway" "detail" "the server broke off; send the request again")
  (dict "status" 503 "code" "overloaded" "detail" "no server is free; come back after the seconds of Retry-After")
  (dict "status" 504 "code" "gateway-timeout" "detail" "the server took too long; send fewer rows a request, or the request again")
-}}
set $scorer_shape problem;
if ($uri ~ "^/v[12](/|$)") { set $scorer_shape envelope; }
{{- range $errors }}
error_page {{ .status }} @scorer_{{ .status }}_$scorer_shape;
location @scorer_{{ .status }}_problem {
  default_type application/problem+json;
  {{- include "xgboost-server.errorHeaders" . | nindent 2 }}
  return {{ .status }} '{"type":"about:blank","title":"{{ .code }}","status":{{ .status }},"detail":"{{ .detail }}","code":"{{ .code }}","request_id":"$request_id"}';
}
location @scorer_{{ .status }}_envelope {
  default_type application/json;
  {{- include "xgboost-server.errorHeaders" . | nindent 2 }}
  return {{ .status }} '{"error":"{{ .detail }}","code":"{{ .code }}"}';
}
{{- end }}
{{- end -}}

{{- define "xgboost-server.errorHeaders" -}}
add_header X-Request-Id $request_id always;
{{- if has .status (list 429 503) }}
add_header Retry-After 1 always;
{{- end }}
{{- end -}}

{{- define "xgboost-server.nginxAnnotations" -}}
{{- $edge := .Values.edge -}}
{{- with .Values.edge.nginx -}}
nginx.org/client-max-body-size: {{ int64 $.Values.server.maxBodyBytes | quote }}
nginx.org/client-body-buffer-size: {{ .bodyBufferSize | quote }}
nginx.org/keepalive: {{ int64 .keepalive | quote }}
nginx.org/proxy-connect-timeout: {{ $edge.connectSeconds }}s
nginx.org/proxy-read-timeout: {{ $edge.readSeconds }}s
nginx.org/proxy-send-timeout: {{ $edge.readSeconds }}s
nginx.org/server-tokens: "false"
{{- /* Two at random, then the less busy one: an NGINX that was just reloaded does not start with the same pod as the others. */}}
nginx.org/lb-method: random two least_conn
{{- if .retries.causes }}
nginx.org/proxy-next-upstream: {{ ternary (append .retries.causes "non_idempotent") .retries.causes .retries.nonIdempotent | join " " | quote }}
nginx.org/proxy-next-upstream-tries: {{ int64 .retries.tries | quote }}
nginx.org/proxy-next-upstream-timeout: {{ .retries.seconds }}s
{{- else }}
nginx.org/proxy-next-upstream: "off"
{{- end }}
nginx.org/max-fails: {{ int64 .maxFails | quote }}
nginx.org/fail-timeout: {{ .failSeconds }}s
{{- if .tlsSecret }}
nginx.org/redirect-to-https: "false"
nginx.org/ssl-redirect: "true"
nginx.org/hsts: "true"
{{- else }}
nginx.org/ssl-redirect: "false"
{{- end }}
{{- if .rateLimit.rate }}
nginx.org/limit-req-rate: {{ .rateLimit.rate }}
nginx.org/limit-req-key: {{ .rateLimit.key | quote }}
nginx.org/limit-req-burst: {{ int64 .rateLimit.burst | quote }}
nginx.org/limit-req-no-delay: "true"
nginx.org/limit-req-reject-code: "429"
{{- /* The limit is for all NGINX pods together, however many there are. */}}
nginx.org/limit-req-scale: "true"
{{- end }}
{{- with .policies }}
nginx.org/policies: {{ join "," . | quote }}
{{- end }}
{{- if .useClusterIp }}
nginx.org/use-cluster-ip: "true"
{{- end }}
{{- if or .jsonErrors .keepaliveMinSeconds }}
nginx.org/server-snippets: |
  {{- if .keepaliveMinSeconds }}
  keepalive_min_timeout {{ int64 .keepaliveMinSeconds }}s;
  {{- end }}
  {{- if .jsonErrors }}
  {{- include "xgboost-server.errorSnippet" $ | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
{{- end -}}
