{{/* What every pod has in common. (dict "root" $ "component" C); optional: "user", its uid and gid; "token", whether it may call the API server */}}
{{- define "emberline.pod" -}}
{{- $user := .user | default (include "emberline.user" . | int) -}}
serviceAccountName: {{ include "emberline.account" (dict "root" .root "component" .component) }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $user }}
  runAsGroup: {{ $user }}
  fsGroup: {{ $user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The image's own user. */}}
{{- define "emberline.user" -}}
10001
{{- end -}}

{{- define "emberline.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "emberline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "emberline.ownImage" -}}
image: {{ include "emberline.image" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{ include "emberline.process" . }}
{{- end -}}

{{- define "emberline.process" -}}
workingDir: /home/emberline
securityContext: {{ include "emberline.containerSecurity" . | nindent 2 }}
{{- end -}}

{{/* The only places that a process may write to. */}}
{{- define "emberline.scratch" -}}
- name: tmp
  emptyDir: {sizeLimit: 20Gi}
- name: home
  emptyDir: {sizeLimit: 10Gi}
{{- end -}}

{{- define "emberline.scratchMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/emberline}
{{- end -}}

{{/* USER, for a uid that is in no /etc/passwd has no name. */}}
{{- define "emberline.env" -}}
{{ include "emberline.env.process" . }}
{{- include "emberline.env.storage" . }}
{{- end -}}

{{- define "emberline.env.process" -}}
- {name: HOME, value: /home/emberline}
- {name: USER, value: emberline}
- {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
- {name: EMBERLINE_LOG_FORMAT, value: {{ .Values.logs.format }}}
{{- end -}}

{{- define "emberline.env.storage" -}}
{{- with .Values.storage.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.endpointUrl }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.storage.existingSecret | quote }}, key: {{ . }}}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of MLflow's clients. */}}
{{- define "emberline.env.tracking" -}}
{{- $mlflow := .Values.mlflow -}}
{{- if or $mlflow.enabled $mlflow.trackingUri }}
- name: MLFLOW_TRACKING_URI
  value: {{ include "emberline.mlflow.uri" . | quote }}
{{- end }}
{{- if $mlflow.clientSecret }}
- name: MLFLOW_TRACKING_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $mlflow.clientSecret | quote }}, key: username}}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $mlflow.clientSecret | quote }}, key: password}}
{{- else if and $mlflow.enabled $mlflow.auth.enabled }}
- name: MLFLOW_TRACKING_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $mlflow.auth.existingSecret | quote }}, key: admin-username}}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $mlflow.auth.existingSecret | quote }}, key: admin-password}}
{{- end }}
{{- end -}}

{{- define "emberline.mlflow.uri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "emberline.mlflow.name" . }}.{{ .Release.Namespace }}.svc
{{- else -}}
{{ .Values.mlflow.trackingUri }}
{{- end -}}
{{- end -}}

{{/* Keys: of those that register models, and of those that load them. A process that registers trusts its own key. */}}
{{- define "emberline.env.signing" -}}
{{- if .Values.signing.existingSecret }}
- {name: EMBERLINE_SIGNING_KEY, value: /etc/emberline/signing/signing.pem}
{{- end }}
{{- end -}}

{{- define "emberline.env.trust" -}}
{{- if .Values.signing.publicKeys }}
- {name: EMBERLINE_TRUSTED_KEYS, value: /etc/emberline/trusted}
{{- end }}
{{- end -}}

{{- define "emberline.signingMounts" -}}
{{- if .Values.signing.existingSecret }}
- {name: signing, mountPath: /etc/emberline/signing, readOnly: true}
{{- end }}
{{- end -}}

{{- define "emberline.trustMounts" -}}
{{- if .Values.signing.publicKeys }}
- {name: trusted, mountPath: /etc/emberline/trusted, readOnly: true}
{{- end }}
{{- end -}}

{{- define "emberline.signing" -}}
{{- with .Values.signing.existingSecret }}
- name: signing
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: signing.pem, path: signing.pem}]}
{{- end }}
{{- end -}}

{{- define "emberline.trust" -}}
{{- if .Values.signing.publicKeys }}
- name: trusted
  configMap: {name: {{ include "emberline.keys.name" . }}}
{{- end }}
{{- end -}}

{{/* Of those that submit to the RayCluster. */}}
{{- define "emberline.env.ray" -}}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ray.auth.existingSecret | default (include "emberline.ray.name" .) | quote }}
      key: auth_token
{{- end -}}

{{- define "emberline.httpProbe" -}}
httpGet: {path: {{ .path }}, port: http}
timeoutSeconds: 5
{{- end -}}
