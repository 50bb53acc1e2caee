{{- define "placer.name" -}}
{{- $name := contains "placer" .Release.Name | ternary .Release.Name (printf "%s-placer" .Release.Name) -}}
{{- trunc 40 $name | trimSuffix "-" -}}
{{- end }}

{{/* Of what stands in no namespace: two releases may have the same name in two. */}}
{{- define "placer.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "placer.name" .) -}}
{{- end }}

{{- define "placer.selector" -}}
app.kubernetes.io/name: placer
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "placer.labels" -}}
{{ include "placer.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: placer
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Namespaces of fleets, as JSON; none: all there are. */}}
{{- define "placer.namespaces" -}}
{{- .Values.clusterWide | ternary list (.Values.namespaces | default (list .Release.Namespace)) | toJson -}}
{{- end }}

{{- define "placer.controllerHost" -}}
{{- printf "%s-controller.%s.svc" (include "placer.name" .) .Release.Namespace -}}
{{- end }}

{{- define "placer.controllerAddress" -}}
{{- if .Values.controller.enabled -}}
{{- include "placer.controllerHost" . }}:7077
{{- else -}}
{{- required "controller.address: without a controller of its own the release needs the host:port of another; set it, or controller.enabled to true" .Values.controller.address -}}
{{- end -}}
{{- end }}

{{- define "placer.operatorAccount" -}}
{{- printf "%s-operator" (include "placer.name" .) -}}
{{- end }}

{{- define "placer.operatorUser" -}}
{{- printf "system:serviceaccount:%s:%s" .Release.Namespace (include "placer.operatorAccount" .) -}}
{{- end }}

{{- define "placer.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "placer.name" .)) -}}
{{- end }}

{{- define "placer.tokensSecret" -}}
{{- .Values.tokens.secretName | default (printf "%s-tokens" (include "placer.name" .)) -}}
{{- end }}

{{- define "placer.image" -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end }}
