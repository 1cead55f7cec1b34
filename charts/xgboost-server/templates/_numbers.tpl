{{/* What follows from the values by arithmetic. Numbers leave a template as text; `int64` makes them numbers again. */}}

{{/* CPU quantity → thousandths: "1500m", "1.5", 1.5 → 1500. */}}
{{- define "xgboost-server.millicores" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{ trimSuffix "m" $text | int64 }}
{{- else -}}
{{ round (mulf (float64 $text) 1000.0) 0 | int64 }}
{{- end -}}
{{- end -}}

{{/* Memory quantity → bytes. */}}
{{- define "xgboost-server.bytes" -}}
{{- $text := toString . -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- $unit := regexFind "[A-Za-z]+$" $text -}}
{{- $number := trimSuffix $unit $text | float64 -}}
{{ round (mulf $number (get $units $unit | default 1 | float64)) 0 | int64 }}
{{- end -}}

{{/* Requests and limits: explicit ones, or those of the preset. */}}
{{- define "xgboost-server.resources" -}}
{{- $sizes := dict "small" (list 1 "512Mi") "medium" (list 2 "1Gi") "large" (list 4 "2Gi") "xlarge" (list 8 "4Gi") -}}
{{- with .Values.resources -}}
{{- if or .requests .limits -}}
{{- with .requests }}
requests: {{ toJson . }}
{{- end }}
{{- with .limits }}
limits: {{ toJson . }}
{{- end }}
{{- else -}}
{{- $size := get $sizes .preset -}}
requests: {cpu: {{ index $size 0 | quote }}, memory: {{ index $size 1 }}}
limits: {cpu: {{ index $size 0 | quote }}, memory: {{ index $size 1 }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* CPUs in thousandths that the workers share: the limit, or the request where there is no limit. */}}
{{- define "xgboost-server.cpu" -}}
{{- $resources := include "xgboost-server.resources" . | fromYaml -}}
{{- $limits := $resources.limits | default dict -}}
{{- $requests := $resources.requests | default dict -}}
{{- include "xgboost-server.millicores" ($limits.cpu | default $requests.cpu | default 0) -}}
{{- end -}}

{{- define "xgboost-server.workers" -}}
{{- $wanted := int64 .Values.server.workers -}}
{{- if $wanted -}}
{{ $wanted }}
{{- else -}}
{{ max 1 (div (include "xgboost-server.cpu" . | int64) 1000) }}
{{- end -}}
{{- end -}}

{{/*
Mebibytes that the workers need. Measured with the examples' models: all processes peak at 250 MiB of PSS with one worker,
while the model is packed and the kernels are compiled, and at 350 with four; bodies and answers come on top.
*/}}
{{- define "xgboost-server.memoryNeed" -}}
{{ add 320 (mul 64 (include "xgboost-server.workers" . | int64)) }}
{{- end -}}

{{- define "xgboost-server.minPods" -}}
{{ ternary .Values.replicas .Values.autoscaling.minReplicas (eq .Values.autoscaling.scaler "none") | int64 }}
{{- end -}}

{{/*
The stop sequence. The pod leaves the endpoints and preStop begins at the same moment; it goes on serving until every proxy
has heard: 5 s for NGINX, which reloads, 45 s for an AWS load balancer, which deregisters the target. Then TERM: the server
drains for at most drainSeconds, and has 10 s to end.
*/}}
{{- define "xgboost-server.preStopSeconds" -}}
{{ max (ternary 45 5 (eq .Values.edge.kind "aws-nlb")) (div (int64 .Values.drainSeconds) 3) }}
{{- end -}}

{{- define "xgboost-server.neededGraceSeconds" -}}
{{ add (include "xgboost-server.preStopSeconds" . | int64) (int64 .Values.drainSeconds) 10 }}
{{- end -}}

{{/*
How long a new pod may take: to fetch the model, to start, and to be ready for minReadySeconds before it counts. The computed
deadline leaves two minutes more for scheduling and pulling the image.
*/}}
{{- define "xgboost-server.minReadySeconds" -}}
5
{{- end -}}

{{- define "xgboost-server.fetchSeconds" -}}
{{- $model := include "xgboost-server.model" . | fromYaml -}}
{{ ternary (.Values.settings.SCORER_FETCH_TIMEOUT_SECONDS | default "600") "0" (eq (toString $model.kind) "fetched") | float64 | ceil | int64 }}
{{- end -}}

{{- define "xgboost-server.podStartSeconds" -}}
{{ add (include "xgboost-server.fetchSeconds" . | int64) (int64 .Values.startupSeconds) (include "xgboost-server.minReadySeconds" . | int64) }}
{{- end -}}

{{- define "xgboost-server.progressSeconds" -}}
{{- $computed := add 120 (include "xgboost-server.fetchSeconds" . | int64) (max 480 (int64 .Values.startupSeconds)) -}}
{{ int64 .Values.progressDeadlineSeconds | default $computed }}
{{- end -}}

{{/* A number of pods or a share of them, as a disruption budget counts: shares are rounded up. Takes `value` and `pods`. */}}
{{- define "xgboost-server.countPods" -}}
{{- if hasSuffix "%" .value -}}
{{ div (add (mul (trimSuffix "%" .value | int64) .pods) 99) 100 }}
{{- else -}}
{{ int64 .value }}
{{- end -}}
{{- end -}}

{{/* A duration as Prometheus writes it → milliseconds: 15s → 15000. */}}
{{- define "xgboost-server.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{ mul (trimSuffix $unit . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000) $unit) }}
{{- end -}}

{{- define "xgboost-server.graceSeconds" -}}
{{ int64 .Values.terminationGracePeriodSeconds | default (include "xgboost-server.neededGraceSeconds" . | int64) }}
{{- end -}}
