{{/* The file that operator and webhook read at start. */}}
{{- define "cinch.settings" -}}
trustDomain: {{ .Values.trustDomain }}
clusterDomain: {{ .Values.clusterDomain }}
namespace: {{ .Release.Namespace }}
rootNamespace: {{ include "cinch.rootNamespace" . }}
images:
  proxy: {{ include "cinch.image" (list . "cinch-proxy") }}
  allowed: {{ include "cinch.allowedImages" . }}
mesh:
  cidrs: {{ .Values.mesh.cidrs | toJson }}
  trustDomainAliases: {{ .Values.mesh.trustDomainAliases | toJson }}
  pathNormalization: {{ .Values.mesh.pathNormalization }}
jwks:
  {{- with .Values.jwks }}
  refreshInterval: {{ .refreshInterval }}
  retryInterval: {{ .retryInterval }}
  timeout: {{ .timeout }}
  allowedCIDRs: {{ .allowedCIDRs | toJson }}
  allowHTTP: {{ .allowHTTP }}
  {{- if .caBundle }}
  caFile: /etc/cinch/jwks-ca.pem
  {{- end }}
  {{- end }}
promotion:
  {{- with .Values.promotion }}
  default: {{ .default }}
  quietPeriod: {{ .quietPeriod }}
  probation: {{ .probation }}
  settle: {{ .settle }}
  maxConcurrent: {{ .maxConcurrent | int }}
  minInterval: {{ .minInterval }}
  {{- end }}
proxy:
  reportInterval: {{ .Values.proxy.reportInterval }}
  {{- with .Values.proxy.log }}
  log: {{ . | quote }}
  {{- end }}
  settings: {{ .Values.proxy.settings | toJson }}
  resources:
    {{- range $class, $amounts := .Values.proxy.resources }}
    {{ $class }}:
      {{- range $name, $amount := $amounts }}
      {{ $name }}: {{ $amount | toString | quote }}
      {{- end }}
    {{- end }}
redirect:
  mode: {{ .Values.redirect.mode }}
webhook:
  port: {{ .Values.webhook.port | int }}
control:
  port: 7443
{{- $lease := .Values.operator.lease }}
{{- if lt (trimSuffix "s" $lease.duration | int) (mul 3 (trimSuffix "s" $lease.renew | int)) }}
{{- fail "operator.lease.duration must be at least three times operator.lease.renew" }}
{{- end }}
lease:
  duration: {{ $lease.duration }}
  renew: {{ $lease.renew }}
{{- end }}
