{{- define "xgboost-server.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 45 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "xgboost-server.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object. Not the chart's version: a new chart that changes nothing else must not roll the pods. */}}
{{- define "xgboost-server.labels" -}}
{{ include "xgboost-server.selectorLabels" . }}
app.kubernetes.io/part-of: xgboost-server
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The pods that serve; helm test's pods carry another component. */}}
{{- define "xgboost-server.podSelector" -}}
{{ include "xgboost-server.selectorLabels" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "xgboost-server.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "xgboost-server.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end -}}

{{- define "xgboost-server.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}
