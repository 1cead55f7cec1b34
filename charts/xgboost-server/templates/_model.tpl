{{/*
The model, by its URI alone: how it comes into the pod and what SCORER_MODEL is. As YAML with
  kind     baked, fetched, claim or image; empty: no scheme that is known
  place    SCORER_MODEL
  volume   the source of the volume at /model, if there is one
*/}}
{{- define "xgboost-server.model" -}}
{{- $uri := .Values.model.uri -}}
{{- $scheme := regexFind "^[a-z0-9]+://" $uri | trimSuffix "://" -}}
{{- $rest := regexReplaceAll "^[a-z0-9]+://" $uri "" -}}
{{- if eq $scheme "file" }}
kind: baked
place: {{ $rest | quote }}
{{- else if has $scheme (list "s3" "gs" "az" "https") }}
kind: fetched
{{- $file := regexFind "\\.(ubj|json)$" (regexReplaceAll "[?#].*$" $uri "") }}
place: {{ ternary (printf "/model/model%s" $file) "/model" (ne $file "") | quote }}
volume: {emptyDir: {sizeLimit: {{ .Values.model.volumeSize }}}}
{{- else if eq $scheme "pvc" }}
kind: claim
place: {{ regexReplaceAll "^[^/]*/?" $rest "/model/" | trimSuffix "/" | quote }}
volume: {persistentVolumeClaim: {claimName: {{ regexFind "^[^/]*" $rest | quote }}, readOnly: true}}
{{- else if eq $scheme "oci" }}
kind: image
place: {{ printf "/model/%s" .Values.model.file | quote }}
volume: {image: {reference: {{ $rest | quote }}, pullPolicy: IfNotPresent}}
{{- end }}
{{- end -}}

{{/* Environment that the server and the init container share: settings, and what the operators add. */}}
{{- define "xgboost-server.sharedEnv" -}}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "xgboost-server.env" -}}
{{- $model := include "xgboost-server.model" . | fromYaml -}}
- {name: SCORER_MODEL, value: {{ $model.place | quote }}}
- {name: SCORER_MODEL_NAME, value: {{ .Values.model.name | quote }}}
{{- with .Values.model.sha256 }}
- {name: SCORER_MODEL_SHA256, value: {{ . | quote }}}
{{- end }}
{{- /* A folder within the volume, which the server makes for itself: the volume belongs to root and is everybody's. */}}
- {name: SCORER_CACHE_DIR, value: /cache/xgboost-server}
- {name: WEB_CONCURRENCY, value: {{ include "xgboost-server.workers" . | quote }}}
- {name: SCORER_DRAIN_SECONDS, value: {{ int64 .Values.drainSeconds | quote }}}
{{- with .Values.server }}
- {name: SCORER_PORT, value: {{ int64 .port | quote }}}
- {name: SCORER_ADMIN_PORT, value: {{ int64 .adminPort | quote }}}
- {name: SCORER_MAX_BODY_BYTES, value: {{ int64 .maxBodyBytes | quote }}}
- {name: SCORER_MAX_ROWS_PER_REQUEST, value: {{ int64 .maxRowsPerRequest | quote }}}
- {name: SCORER_MAX_IN_FLIGHT, value: {{ int64 .maxInFlight | quote }}}
- {name: SCORER_READ_TIMEOUT_SECONDS, value: {{ .readTimeoutSeconds | quote }}}
- {name: SCORER_KEEPALIVE_SECONDS, value: {{ .keepAliveSeconds | quote }}}
{{- end }}
{{- include "xgboost-server.sharedEnv" . }}
{{- end -}}

{{/* The hosts that a fetch over https may speak to: the URI's own, and those that it may redirect to. */}}
{{- define "xgboost-server.httpsHosts" -}}
{{- if hasPrefix "https://" .Values.model.uri -}}
{{ prepend .Values.model.httpsHosts (get (urlParse .Values.model.uri) "host") | join "," }}
{{- end -}}
{{- end -}}

{{- define "xgboost-server.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "xgboost-server.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.security.runAsUser }}
runAsGroup: {{ int64 .Values.security.runAsGroup }}
fsGroup: {{ int64 .Values.security.runAsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}
