{{/* Name of the objects: room is left for the longest suffix, "-uninstall-check". */}}
{{- define "dpo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/*
Name of the agents' account. It is part of every revision, which never changes, so it is the same
for every release.
*/}}
{{- define "dpo.agentServiceAccount" -}}
device-plugin-agent
{{- end }}

{{/* Labels that select the operator's pod. Frozen: a Deployment's selector cannot be changed. */}}
{{- define "dpo.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of every object; a template adds app.kubernetes.io/component. */}}
{{- define "dpo.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: device-plugin-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Reference of an image. Call with "root", "image" and "registry". */}}
{{- define "dpo.image" -}}
{{- $name := .image.name -}}
{{- with .registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end }}

{{- define "dpo.operatorImage" -}}
{{- include "dpo.image" (dict "root" . "image" .Values.image "registry" .Values.image.registry) -}}
{{- end }}

{{- define "dpo.agentImage" -}}
{{- $registry := default .Values.image.registry .Values.agent.image.registry -}}
{{- include "dpo.image" (dict "root" . "image" .Values.agent.image "registry" $registry) -}}
{{- end }}

{{/* Where the operator's image may run, for the operator and the uninstall check. */}}
{{- define "dpo.placement" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Nothing that the restricted Pod Security Standard refuses. */}}
{{- define "dpo.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "dpo.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
  - ALL
{{- end }}

{{/*
Whether a line e allows image i: the same reference, the same repository with any tag or digest, or,
of a line that ends in /*, every repository below. A host's port is no tag: what follows a colon and
has a slash is another repository.
*/}}
{{- define "dpo.imageMatches" -}}
e == i || e == "*" || (e.endsWith("/*") ? i.startsWith(e.substring(0, size(e) - 1)) : i.startsWith(e + "@") || (i.startsWith(e + ":") && !i.substring(size(e) + 1).contains("/")))
{{- end }}
