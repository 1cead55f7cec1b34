{{/* The metrics of this release, as its ServiceMonitor labels them. */}}
{{- define "xgboost-server.select" -}}
namespace="{{ .Release.Namespace }}",job="{{ .Release.Name }}"
{{- end -}}

{{/* A bound of a histogram as Prometheus writes it: 1 is "1.0". */}}
{{- define "xgboost-server.bound" -}}
{{- $text := toString . -}}
{{- ternary $text (print $text ".0") (or (contains "." $text) (contains "e" $text)) -}}
{{- end -}}

{{/*
Alerts on the error budget: so many times too fast over a long window, and over a short one, so that it ends soon after the
trouble does. Factors for a budget of 30 days (2 % of it in an hour, 5 % in six, 10 % in a day, 10 % in three). More than ten
faults in the long window, or one unlucky caller at night would wake somebody.
*/}}
{{- define "xgboost-server.burns" -}}
- {factor: 14.4, long: 1h, short: 5m, for: 2m, severity: critical}
- {factor: 6, long: 6h, short: 30m, for: 15m, severity: critical}
- {factor: 3, long: 1d, short: 2h, for: 1h, severity: warning}
- {factor: 1, long: 3d, short: 6h, for: 3h, severity: warning}
{{- end -}}
