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
  resources:
    {{- range $class, $amounts := .Values.proxy.resources }}
    {{ $class }}:
      {{- range $name, $amount := $amounts }}
      {{ $name }}: {{ $amount | toString | quote }}
      {{- end }}
    {{- end }}
webhook:
  port: {{ .Values.webhook.port | int }}
control:
  port: 7443
{{- end }}
