{{- define "indexer.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "indexer.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "indexer.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{ include "indexer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Not empty: the state lies in Elasticsearch, and one of several pods leads. */}}
{{- define "indexer.led" -}}
{{- if eq (.Values.config.state | default "sqlite") "elasticsearch" }}true{{ end }}
{{- end }}

{{- define "indexer.replicas" -}}
{{ .Values.replicas | default (ternary 2 1 (ne (include "indexer.led" .) "")) }}
{{- end }}

{{- define "indexer.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "indexer.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "indexer.tlsSecret" -}}
{{ .Values.listen.tlsSecret | default (printf "%s-tls" (include "indexer.name" .)) }}
{{- end }}

{{- define "indexer.tokenSecret" -}}
{{ .Values.listen.tokenSecret | default (printf "%s-token" (include "indexer.name" .)) }}
{{- end }}

{{- define "indexer.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What the chart itself decides: places in the container. To Helm each number is a fraction, which no setting takes. */}}
{{- define "indexer.config" -}}
{{- $elasticsearch := dict "api-key" "file:/secrets/elasticsearch/api-key" }}
{{- if .Values.elasticsearch.caSecret }}
{{- $_ := set $elasticsearch "ca" "/secrets/elasticsearch-ca/ca.crt" }}
{{- end }}
{{- $listen := dict }}
{{- if .Values.listen.enabled }}
{{- $listen = dict "addr" (printf "0.0.0.0:%d" (int .Values.listen.port)) "token" "file:/secrets/token/token" "cert" "/secrets/tls/tls.crt" "key" "/secrets/tls/tls.key" }}
{{- end }}
{{- $places := dict "teleport" (dict "identity" (ternary "/tbot/identity" "/secrets/teleport/identity" .Values.tbot.enabled)) "forward" (dict "elasticsearch" $elasticsearch) }}
{{- with $listen }}{{ $_ := set $places "listen" . }}{{ end }}
{{- if not (include "indexer.led" .) }}{{ $_ := set $places "storage" "/state" }}{{ end }}
{{- $text := mergeOverwrite (deepCopy .Values.config) $places | toToml }}
{{- regexReplaceAll "(?m)^( *[a-z-]+ = [0-9]+)[.]0$" $text "${1}" }}
{{- end }}
