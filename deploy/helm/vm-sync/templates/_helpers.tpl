{{/* Labels of every object. The name is always vm-sync, which the alerts ask for; so one release in a namespace. */}}
{{- define "vm-sync.labels" -}}
app.kubernetes.io/name: vm-sync
app.kubernetes.io/part-of: vm-sync
{{- end }}

{{/* Whether KEDA sets the number of instances: "true" or nothing. */}}
{{- define "vm-sync.scaled" -}}
{{- if and .Values.keda.enabled (.Capabilities.APIVersions.Has "keda.sh/v1alpha1/ScaledObject") }}true{{ end }}
{{- end }}

{{- define "vm-sync.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The variables of the service and of the check before it. */}}
{{- define "vm-sync.variables" -}}
{{- range $name, $value := .Values.settings }}
VM_SYNC_{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- if .Values.kafkaCa }}
VM_SYNC_KAFKA__SSL_CA_FILE: /run/kafka-ca/ca.crt
{{- end }}
{{- if .Values.vcdaCa }}
VM_SYNC_VCDA__CA_FILE: /run/vcda-ca/ca.crt
{{- end }}
{{- range $name, $value := .Values.environment }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* What the service and the check before it have in common. */}}
{{- define "vm-sync.container" -}}
image: {{ include "vm-sync.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
envFrom:
  - configMapRef:
      name: vm-sync
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  # Mounted whole, not by subPath: only so do changed files arrive.
  - name: secrets
    mountPath: /run/secrets/vm-sync
    readOnly: true
  {{- if .Values.kafkaCa }}
  - name: kafka-ca
    mountPath: /run/kafka-ca
    readOnly: true
  {{- end }}
  {{- if .Values.vcdaCa }}
  - name: vcda-ca
    mountPath: /run/vcda-ca
    readOnly: true
  {{- end }}
{{- end }}
