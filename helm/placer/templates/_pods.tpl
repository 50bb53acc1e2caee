{{/* What all pods of the release have in common: nobody's rights, nothing to write to but what is mounted. */}}
{{- define "placer.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "placer.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Where placer's image puts the kernels that it brings, and others are compiled into: it may be written to. */}}
{{- define "placer.environment" -}}
- {name: HOME, value: /tmp}
- {name: NUMBA_CACHE_DIR, value: /tmp/numba}
{{- end }}

{{- define "placer.tlsVolume" -}}
- name: tls
  secret: {secretName: {{ include "placer.tlsSecret" . }}, defaultMode: 0440}
{{- end }}

{{/* Whom to trust, without the key. */}}
{{- define "placer.caVolume" -}}
- name: ca
  secret:
    secretName: {{ include "placer.tlsSecret" . }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}

{{/* One caller's token, and nobody else's. */}}
{{- define "placer.tokenVolume" -}}
- name: token
  secret:
    secretName: {{ include "placer.tokensSecret" .root }}
    defaultMode: 0440
    items: [{key: {{ .of }}, path: token}]
{{- end }}

{{- define "placer.tmpVolume" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end }}
