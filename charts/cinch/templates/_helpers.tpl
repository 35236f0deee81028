{{/* Names, labels, image references and the sentences of admission policies. */}}

{{- define "cinch.labels" -}}
app.kubernetes.io/part-of: cinch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The labels by which a Deployment finds its pods. Takes the component's name. */}}
{{- define "cinch.selector" -}}
app.kubernetes.io/name: {{ . }}
{{- end }}

{{/* An image of this release: list ROOT NAME. */}}
{{- define "cinch.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.images.registry }}/{{ index . 1 }}:{{ $root.Values.images.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* Every reference a sidecar may have, as a JSON array: current, mirrors, previous. */}}
{{- define "cinch.allowedImages" -}}
{{- $tag := .Values.images.tag | default .Chart.AppVersion -}}
{{- $allowed := list (include "cinch.image" (list . "cinch-proxy")) -}}
{{- range .Values.images.mirrors }}{{ $allowed = append $allowed (printf "%s/cinch-proxy:%s" . $tag) }}{{ end -}}
{{- range .Values.images.previous }}{{ $allowed = append $allowed . }}{{ end -}}
{{ $allowed | uniq | toJson }}
{{- end }}

{{/*
What the environment of a sidecar may say about the proxy's work, as a CEL list of texts: current, previous. The webhook
writes the same JSON: keys sorted, no blanks. The schema leaves nothing in it that would need to be quoted.
*/}}
{{- define "cinch.allowedProxySettings" -}}
{{- $texts := list (.Values.proxy.settings | toJson | squote) -}}
{{- range .Values.proxy.previousSettings }}{{ $texts = append $texts (. | toJson | squote) }}{{ end -}}
[{{ $texts | uniq | join ", " }}]
{{- end }}

{{/* Not empty where the node agent is installed. */}}
{{- define "cinch.node" -}}
{{- if or (eq .Values.redirect.mode "agent") (eq .Values.node.install "always") }}yes{{ end -}}
{{- end }}

{{- define "cinch.rootNamespace" -}}
{{ .Values.rootNamespace | default .Release.Namespace }}
{{- end }}

{{/* The user name that the API server gives to the operator. */}}
{{- define "cinch.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:cinch-operator
{{- end }}

{{/* Namespaces that are never meshed, as a JSON array. */}}
{{- define "cinch.systemNamespaces" -}}
{{ list "kube-system" "kube-public" "kube-node-lease" .Release.Namespace | uniq | toJson }}
{{- end }}

{{/* Selects enrolled namespaces, and never the cluster's own or Cinch's. */}}
{{- define "cinch.enrolled" -}}
matchLabels: {cinch.dev/mesh: enabled}
matchExpressions:
- {key: kubernetes.io/metadata.name, operator: NotIn, values: {{ include "cinch.systemNamespaces" . }}}
{{- end }}

{{/* As cinch.enrolled, but for the root namespace, whose policies are selected by its name. */}}
{{- define "cinch.enrolledButRoot" -}}
matchLabels: {cinch.dev/mesh: enabled}
matchExpressions:
- {key: kubernetes.io/metadata.name, operator: NotIn, values: {{ append (include "cinch.systemNamespaces" . | fromJsonArray) (include "cinch.rootNamespace" .) | uniq | toJson }}}
{{- end }}

{{/* As cinch.enrolled, and locked. */}}
{{- define "cinch.locked" -}}
matchLabels: {cinch.dev/mode: STRICT}
matchExpressions:
- {key: kubernetes.io/metadata.name, operator: NotIn, values: {{ include "cinch.systemNamespaces" . }}}
{{- end }}

{{/*
The message of a denial, from files/reasons.yaml: list ROOT REASON DETAIL, where DETAIL is a CEL string expression
that says what was seen. It gives both fields, so that a detail that fails to evaluate still leaves the sentence.
*/}}
{{- define "cinch.message" -}}
{{- $root := index . 0 -}}
{{- $word := index . 1 -}}
{{- $row := required (printf "no reason %s in files/reasons.yaml" $word) (get ($root.Files.Get "files/reasons.yaml" | fromYaml) $word) -}}
{{- $hint := $row.hint | default "" -}}
{{- $head := printf "%s: %s" $word $row.sentence -}}
{{- $tail := ternary (printf "; %s" $hint) "" (ne $hint "") -}}
message: {{ printf "%s%s" $head $tail | toJson }}
messageExpression: {{ printf "'%s (' + %s + ')%s'" $head (index . 2) $tail | toJson }}
reason: Forbidden
{{- end }}

{{/* What operator and webhook have in common as pods: list ROOT COMPONENT. */}}
{{- define "cinch.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cinch.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "cinch.env" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: CINCH_LOG, value: {{ .Values.log | quote }}}
{{- end }}

{{- define "cinch.affinity" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {app.kubernetes.io/name: {{ . }}}
{{- end }}
