{{/*
Contradictions that a schema cannot tell, one line each. All are listed at once, so that values are mended in one go; faults.yaml
stops the render if there are any.
*/}}
{{- define "xgboost-server.faults" -}}
{{- include "xgboost-server.faults.required" . }}
{{- include "xgboost-server.faults.model" . }}
{{- include "xgboost-server.faults.pod" . }}
{{- include "xgboost-server.faults.resources" . }}
{{- include "xgboost-server.faults.scaling" . }}
{{- include "xgboost-server.faults.stopping" . }}
{{- include "xgboost-server.faults.edge" . }}
{{- include "xgboost-server.faults.access" . }}
{{- include "xgboost-server.faults.monitoring" . }}
{{- end -}}

{{- define "xgboost-server.faults.required" -}}
{{- if not .Values.image.repository }}
image.repository: missing; name the registry and the image
{{- end }}
{{- if not .Values.model.name }}
model.name: missing; it is part of the URLs and the metrics
{{- end }}
{{- if eq .Values.environment "production" }}
{{- if not .Values.image.digest }}
image.digest: missing; in production a tag is not enough, for it can be moved to another image
{{- end }}
{{- if not .Values.model.sha256 }}
model.sha256: missing; in production the model is pinned, so that a changed file is refused
{{- end }}
{{- if and (hasPrefix "oci://" .Values.model.uri) (not (contains "@sha256:" .Values.model.uri)) }}
model.uri: expected oci://REFERENCE@sha256:…; in production a tag is not enough, for it can be moved to another image
{{- end }}
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.model" -}}
{{- $model := include "xgboost-server.model" . | fromYaml }}
{{- if not .Values.model.uri }}
model.uri: missing; expected file://, s3://, gs://, az://, https://, pvc:// or oci://
{{- else if not $model.kind }}
model.uri: expected file://, s3://, gs://, az://, https://, pvc:// or oci://
{{- else if and (eq $model.kind "image") (not (semverCompare ">=1.35.0-0" .Capabilities.KubeVersion.Version)) }}
model.uri: oci:// needs Kubernetes 1.35, this is {{ .Capabilities.KubeVersion.Version }}; older ones drop the volume without a word
{{- end }}
{{- if and .Values.model.httpsHosts (not (hasPrefix "https://" .Values.model.uri)) }}
model.httpsHosts: only for a model.uri of https://; remove it
{{- end }}
{{- end -}}

{{- /* What the API server would refuse only when it is applied: names and places that are taken, or not there. */}}
{{- define "xgboost-server.faults.pod" -}}
{{- $names := list }}
{{- range $index, $entry := .Values.env }}
{{- if or (hasPrefix "SCORER_" $entry.name) (eq "WEB_CONCURRENCY" $entry.name) }}
env[{{ $index }}]: {{ $entry.name }} is a setting of the server; put it under settings, or use the value that sets it
{{- else if has $entry.name $names }}
env[{{ $index }}]: {{ $entry.name }} is there twice; the later one would win, unnoticed
{{- end }}
{{- $names = append $names $entry.name }}
{{- end }}
{{- range $name, $_ := .Values.labels }}
{{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/part-of" "app.kubernetes.io/managed-by") }}
labels: {{ $name }} is the chart's own; Services and budgets find the pods by it
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.podAnnotations }}
{{- if has $name (list "kubectl.kubernetes.io/default-container" "xgboost-server/model-uri" "xgboost-server/model-sha256" "checksum/files") }}
podAnnotations: {{ $name }} is the chart's own; remove it
{{- end }}
{{- end }}
{{- $own := list "model" "cache" "tmp" "files" }}
{{- $volumes := list }}
{{- range $index, $volume := .Values.volumes }}
{{- if has $volume.name (concat $own $volumes) }}
volumes[{{ $index }}]: the name {{ $volume.name }} is taken; give it another
{{- end }}
{{- $volumes = append $volumes $volume.name }}
{{- end }}
{{- $places := list "/model" "/cache" "/tmp" "/etc/xgboost-server" }}
{{- range $index, $mount := .Values.volumeMounts }}
{{- $place := trimSuffix "/" $mount.mountPath }}
{{- if has $place $places }}
volumeMounts[{{ $index }}]: {{ $place }} is taken; mount it elsewhere
{{- end }}
{{- if not (has $mount.name (concat $own $volumes)) }}
volumeMounts[{{ $index }}]: no volume has the name {{ $mount.name }}; put it under volumes
{{- end }}
{{- $places = append $places $place }}
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.resources" -}}
{{- $resources := include "xgboost-server.resources" . | fromYaml }}
{{- $limits := $resources.limits | default dict }}
{{- $requests := $resources.requests | default dict }}
{{- $workers := include "xgboost-server.workers" . | int64 }}
{{- $cpu := include "xgboost-server.cpu" . | int64 }}
{{- if and (gt $workers 1) (lt $cpu (mul 1000 $workers)) }}
server.workers: {{ $workers }} workers need {{ $workers }} CPUs, and there are {{ $cpu }}m; raise resources.limits.cpu or take fewer workers
{{- end }}
{{- if not $limits.memory }}
resources.limits.memory: missing; without it one pod can take the memory of its whole node
{{- else if lt (include "xgboost-server.bytes" $limits.memory | int64) (mul 1048576 (include "xgboost-server.memoryNeed" . | int64)) }}
resources.limits.memory: {{ $workers }} workers need {{ include "xgboost-server.memoryNeed" . }}Mi, and {{ $limits.memory }} is less
{{- end }}
{{- if not $requests.cpu }}
resources.requests.cpu: missing; the scheduler would put the pod anywhere, and an HPA has nothing to compare with
{{- else if and $limits.cpu (gt (include "xgboost-server.millicores" $requests.cpu | int64) (include "xgboost-server.millicores" $limits.cpu | int64)) }}
resources.requests.cpu: {{ $requests.cpu }} is more than the limit of {{ $limits.cpu }}
{{- end }}
{{- if not $requests.memory }}
resources.requests.memory: missing; the scheduler would put the pod on a node that has no room for it
{{- else if and $limits.memory (gt (include "xgboost-server.bytes" $requests.memory | int64) (include "xgboost-server.bytes" $limits.memory | int64)) }}
resources.requests.memory: {{ $requests.memory }} is more than the limit of {{ $limits.memory }}
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.scaling" -}}
{{- $pods := include "xgboost-server.minPods" . | int64 }}
{{- $field := ternary "replicas" "autoscaling.minReplicas" (eq .Values.autoscaling.scaler "none") }}
{{- with .Values.autoscaling }}
{{- if and (ne .scaler "none") (gt (int64 .minReplicas) (int64 .maxReplicas)) }}
autoscaling.minReplicas: {{ int64 .minReplicas }} is more than maxReplicas, {{ int64 .maxReplicas }}
{{- end }}
{{- if and (eq .scaler "hpa") (not .cpuPercent) (not .memoryPercent) }}
autoscaling.cpuPercent: 0, and memoryPercent too; an HPA without a metric never scales
{{- end }}
{{- if and (eq .scaler "keda") (not .keda.serverAddress) }}
autoscaling.keda.serverAddress: missing; KEDA asks Prometheus there
{{- end }}
{{- if and (eq .scaler "keda") (not $.Values.monitoring.serviceMonitor.enabled) }}
autoscaling.scaler: keda, and monitoring.serviceMonitor.enabled is false; Prometheus would have no busy share of these pods to tell KEDA
{{- end }}
{{- if and (ne .scaler "keda") .keda.serverAddress }}
autoscaling.keda.serverAddress: set, and autoscaling.scaler is {{ .scaler }}; two scalers of one Deployment fight, choose keda or remove it
{{- end }}
{{- if gt (int64 .keda.fallbackReplicas) (int64 .maxReplicas) }}
autoscaling.keda.fallbackReplicas: {{ int64 .keda.fallbackReplicas }} is more than maxReplicas, {{ int64 .maxReplicas }}
{{- end }}
{{- end }}
{{- if and (eq .Values.environment "production") (lt $pods 2) }}
{{ $field }}: {{ $pods }}; in production at least 2, or each node drain and each crash is an outage
{{- end }}
{{- with .Values.disruptionBudget }}
{{- if .enabled }}
{{- $minimum := toString .minAvailable }}
{{- $maximum := toString .maxUnavailable }}
{{- $kept := include "xgboost-server.countPods" (dict "value" $minimum "pods" $pods) | int64 }}
{{- $missing := include "xgboost-server.countPods" (dict "value" $maximum "pods" $pods) | int64 }}
{{- if and (ne $minimum "") (ne $maximum "") }}
disruptionBudget: minAvailable and maxUnavailable are both set; Kubernetes takes one, set the other to ""
{{- else if and (eq $minimum "") (eq $maximum "") }}
disruptionBudget: neither minAvailable nor maxUnavailable is set
{{- else if and (ne $minimum "") (ge $kept $pods) }}
disruptionBudget.minAvailable: {{ $minimum }} of {{ $field }} {{ $pods }} are {{ $kept }} pods; no node with one of them could ever be drained
{{- else if and (ne $maximum "") (eq $missing 0) }}
disruptionBudget.maxUnavailable: {{ $maximum }}; no node with one of these pods could ever be drained
{{- else if and (ge $missing $pods) (gt $pods 1) }}
disruptionBudget.maxUnavailable: {{ $maximum }} of {{ $field }} {{ $pods }} are {{ $missing }} pods; one node drain could take all of them at once
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.stopping" -}}
{{- $given := int64 .Values.terminationGracePeriodSeconds }}
{{- $needed := include "xgboost-server.neededGraceSeconds" . | int64 }}
{{- if and $given (lt $given $needed) }}
terminationGracePeriodSeconds: {{ $given }} is too short for drainSeconds {{ int64 .Values.drainSeconds }}; {{ include "xgboost-server.preStopSeconds" . }} s preStop, the drain and 10 s to end make {{ $needed }}
{{- end }}
{{- $deadline := int64 .Values.progressDeadlineSeconds }}
{{- $start := include "xgboost-server.podStartSeconds" . | int64 }}
{{- if and $deadline (lt $deadline $start) }}
progressDeadlineSeconds: {{ $deadline }} is too short; a pod may take {{ include "xgboost-server.fetchSeconds" . }} s to fetch the model, {{ int64 .Values.startupSeconds }} to start and {{ include "xgboost-server.minReadySeconds" . }} to count as ready, {{ $start }} in all
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.edge" -}}
{{- $server := .Values.server }}
{{- if eq (int64 $server.port) (int64 $server.adminPort) }}
server.adminPort: {{ int64 $server.adminPort }} is the callers' port too; metrics and repository calls would be open to them
{{- end }}
{{- with .Values.edge }}
{{- if and (ne .kind "none") (le (float64 $server.keepAliveSeconds) (float64 .upstreamIdleSeconds)) }}
server.keepAliveSeconds: {{ $server.keepAliveSeconds }} must be more than edge.upstreamIdleSeconds, {{ .upstreamIdleSeconds }}; else the proxy sends requests into connections that the server is closing, and callers get 502
{{- end }}
{{- if and (has .kind (list "nginx" "gateway")) (not .host) }}
edge.host: missing; edge.kind {{ .kind }} needs a host name, or choose the kind none
{{- end }}
{{- if and (eq .kind "gateway") (not .gateway.parentRefs) }}
edge.gateway.parentRefs: missing; an HTTPRoute without a Gateway routes nothing
{{- end }}
{{- if and (ne .kind "gateway") .gateway.parentRefs }}
edge.gateway.parentRefs: set, and edge.kind is {{ .kind }}; one way in at a time, choose gateway or remove them
{{- end }}
{{- if and (ne .kind "nginx") .nginx.tlsSecret }}
edge.nginx.tlsSecret: set, and edge.kind is {{ .kind }}; one way in at a time, choose nginx or remove it
{{- end }}
{{- if and (ne .kind "nginx") .nginx.rateLimit.rate }}
edge.nginx.rateLimit.rate: set, and edge.kind is {{ .kind }}; nothing would limit callers, choose nginx or remove it
{{- end }}
{{- if and (ne .kind "nginx") .nginx.policies }}
edge.nginx.policies: set, and edge.kind is {{ .kind }}; nothing would apply them, choose nginx or remove them
{{- end }}
{{- if and (ne .kind "aws-nlb") .awsNlb.sourceRanges }}
edge.awsNlb.sourceRanges: set, and edge.kind is {{ .kind }}; nothing would keep others out, choose aws-nlb or remove them
{{- end }}
{{- if and (ne .kind "aws-nlb") .awsNlb.certificateArn }}
edge.awsNlb.certificateArn: set, and edge.kind is {{ .kind }}; one way in at a time, choose aws-nlb or remove it
{{- end }}
{{- range $index, $path := .extraPaths }}
{{- if has $path (splitList "\n" (include "xgboost-server.scoringPaths" $)) }}
edge.extraPaths[{{ $index }}]: {{ $path }} is a scoring path and let through already
{{- else if or (eq $path "/metrics") (hasPrefix "/v2/repository" $path) }}
edge.extraPaths[{{ $index }}]: {{ $path }} is for the admin port only
{{- else if and (eq $.Values.edge.kind "nginx") $.Values.edge.nginx.retries.causes $.Values.edge.nginx.retries.nonIdempotent (not (regexMatch "^(/livez|/readyz|/healthz|/v1/models|/v2)(/|$)|^(/predict|/score|/invocations|/ping|/version|/execution-parameters)$" $path)) }}
edge.extraPaths[{{ $index }}]: {{ $path }} is not known to be without effect, and edge.nginx.retries.nonIdempotent may send a request twice; set that to false
{{- end }}
{{- end }}
{{- if and .nginx.retries.causes (ge (float64 .nginx.retries.seconds) (float64 .readSeconds)) }}
edge.nginx.retries.seconds: {{ .nginx.retries.seconds }} is not below edge.readSeconds, {{ .readSeconds }}; a slow answer would be asked for twice, which doubles an overload
{{- end }}
{{- if and $.Values.test.edgeUrl (not (has .kind (list "nginx" "gateway"))) }}
test.edgeUrl: set, and edge.kind {{ .kind }} has no proxy to test
{{- end }}
{{- end }}
{{- with .Values.test.edgeAuthorities }}
{{- if not (hasKey $.Values.files .) }}
test.edgeAuthorities: {{ . }} is not in files
{{- end }}
{{- end }}
{{- if ne (len .Values.test.rows) (len .Values.test.predictions) }}
test.predictions: {{ len .Values.test.predictions }} for {{ len .Values.test.rows }} rows; expected one for each
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.access" -}}
{{- with .Values.serviceAccount }}
{{- if and .awsRoleArn .awsPodIdentity }}
serviceAccount.awsPodIdentity: true, and awsRoleArn is set; the role comes one way or the other
{{- end }}
{{- if and (not .create) (or .awsRoleArn .annotations) }}
serviceAccount.create: false, so its annotations and awsRoleArn would be lost; put them on the account that is there
{{- end }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (eq .Values.edge.kind "aws-nlb") (not .Values.networkPolicy.callers) }}
networkPolicy.callers: missing; with aws-nlb name the load balancer's addresses, such as {ipBlock: {cidr: 10.0.0.0/16}}
{{- end }}
{{- end -}}

{{- define "xgboost-server.faults.monitoring" -}}
{{- with .Values.monitoring }}
{{- if gt (include "xgboost-server.milliseconds" .serviceMonitor.scrapeTimeout | int64) (include "xgboost-server.milliseconds" .serviceMonitor.interval | int64) }}
monitoring.serviceMonitor.scrapeTimeout: {{ .serviceMonitor.scrapeTimeout }} is longer than the interval, {{ .serviceMonitor.interval }}; the Prometheus Operator drops such a monitor
{{- end }}
{{- if and .rules.enabled (not .serviceMonitor.enabled) }}
monitoring.rules.enabled: true, and monitoring.serviceMonitor.enabled is false; no metric would have the labels that the rules ask for, and ScorerNoReadyPod would never end
{{- end }}
{{- end }}
{{- end -}}
