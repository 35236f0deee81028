{{/*
What lets a container undo the redirect or act as the proxy. The injection judges templates by the same lists
(crates/injection/src/privileges.rs); a test compares them.
*/}}

{{/* Capabilities, with and without their prefix, as a CEL list. */}}
{{- define "cinch.capabilities" -}}
{{- $names := list "NET_ADMIN" "NET_RAW" "SYS_ADMIN" "SYS_PTRACE" "SYS_MODULE" "SYS_RAWIO" "DAC_READ_SEARCH" "BPF" "PERFMON" "ALL" -}}
{{- $all := list -}}
{{- range $names }}{{ $all = append (append $all (squote .)) (printf "CAP_%s" . | squote) }}{{ end -}}
[{{ $all | join ", " }}]
{{- end }}

{{/*
Paths of a node that no pod needs to see and that lead out of it, read-only too: through sockets of container runtimes
and of the first process, files of other pods (our sockets among them), processes and cgroups. A mount for reading only
leaves what is mounted below it writable, and a socket takes words on any mount.
*/}}
{{- define "cinch.nodePaths" -}}
{{- $paths := list "/proc" "/sys/fs/cgroup" "/var/lib/kubelet" .Values.node.kubeletRoot "/var/lib/docker/overlay2" "/var/lib/containers/storage" -}}
{{- range list "containerd" "crio" "docker" "docker.sock" "cri-dockerd.sock" "podman" "k3s" "dbus" "systemd/private" -}}
{{- $paths = append (append $paths (printf "/run/%s" .)) (printf "/var/run/%s" .) -}}
{{- end -}}
{{- $all := list -}}
{{- range $paths | uniq }}{{ $all = append $all (printf "%s/" . | squote) }}{{ end -}}
[{{ $all | join ", " }}]
{{- end }}

{{/* Paths by which whoever may write there becomes root of the node. */}}
{{- define "cinch.nodeFiles" -}}
{{- $all := list -}}
{{- range list "/bin" "/boot" "/etc" "/lib" "/lib64" "/opt/cni" "/root" "/sbin" "/sys" "/usr" "/var/lib/containerd" "/var/lib/containers" "/var/lib/docker" "/var/lib/rancher" "/var/spool/cron" -}}
{{- $all = append $all (printf "%s/" . | squote) -}}
{{- end -}}
[{{ $all | join ", " }}]
{{- end }}

{{/*
The volumes of a pod that are such paths, lie below or hold them, as variables. Takes a list: ROOT, and a CEL
expression of the pod's spec. The API server lets no path go back by `..`; it may have more slashes than it needs.
*/}}
{{- define "cinch.hostPaths" -}}
{{- $root := index . 0 -}}
- name: hostPaths
  expression: >-
    {{ index . 1 }}.?volumes.orValue([]).filter(v, v.?hostPath.?path.hasValue()).map(v, {'name': string(v.name), 'path':
    v.hostPath.path.split('/').filter(s, s != '' && s != '.').map(s, '/' + s).join('') + '/'})
- name: nodePaths
  expression: >-
    variables.hostPaths.filter(h, {{ include "cinch.nodePaths" $root }}.exists(p, h.path.startsWith(p) ||
    p.startsWith(h.path))).map(h, h.name)
- name: nodeFiles
  expression: >-
    variables.hostPaths.filter(h, {{ include "cinch.nodeFiles" $root }}.exists(p, h.path.startsWith(p) ||
    p.startsWith(h.path))).map(h, h.name)
{{- end }}

{{/* Whether a container `c` has any of it, as a CEL expression over the variables above. */}}
{{- define "cinch.privileged" -}}
(c.?securityContext.?runAsUser.orValue(0) == 1507 || c.?securityContext.?privileged.orValue(false) || c.?securityContext.?capabilities.?add.orValue([]).exists(k, k.upperAscii() in variables.capabilities) || c.?volumeMounts.orValue([]).exists(m, m.name in variables.nodePaths || m.name in variables.nodeFiles && !m.?readOnly.orValue(false)))
{{- end }}
