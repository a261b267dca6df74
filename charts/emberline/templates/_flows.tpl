{{/* A NetworkPolicy of one component beside the denial of everything else; the rules are the template's. (dict "root" $ "component" C "rules" YAML) */}}
{{- define "emberline.flows" -}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "emberline.name" (dict "root" .root "suffix" .component) }}
  labels: {{ include "emberline.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{ include "emberline.podsOf" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- .rules | nindent 2 }}
{{ end -}}

{{/* KubeRay's own pods have another app.kubernetes.io/name in some versions, so that is no part of it. */}}
{{- define "emberline.podsOf" -}}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* A peer: the pods of a component. (dict "root" $ "component" C) */}}
{{- define "emberline.peer" -}}
- podSelector:
    matchLabels: {{ include "emberline.podsOf" . | nindent 6 }}
{{- end -}}

{{/* Egress to peers by their ports' numbers. (dict "peers" L "ports" L) */}}
{{- define "emberline.toPeers" -}}
- to: {{ toYaml .peers | nindent 4 }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{/* Egress to MLflow, here or elsewhere. */}}
{{- define "emberline.toMlflow" -}}
{{- if .Values.mlflow.enabled -}}
- to: {{ include "emberline.peer" (dict "root" . "component" "mlflow") | nindent 4 }}
  ports: [{port: http, protocol: TCP}]
{{- else if .Values.mlflow.trackingUri -}}
{{ include "emberline.toPeers" (dict "peers" .Values.networkPolicy.external "ports" (list (include "emberline.port" .Values.mlflow.trackingUri))) }}
{{- end -}}
{{- end -}}

{{/* Egress to S3 and AWS. */}}
{{- define "emberline.toStorage" -}}
{{- $ports := list "443" -}}
{{- with .Values.storage.endpointUrl }}{{ $ports = append $ports (include "emberline.port" .) | uniq }}{{ end -}}
{{ include "emberline.toPeers" (dict "peers" .Values.networkPolicy.storage "ports" $ports) }}
{{- end -}}

{{/* The port of a URL or of HOST:PORT. */}}
{{- define "emberline.port" -}}
{{- $found := regexFind ":[0-9]+(/|$)" . | trimPrefix ":" | trimSuffix "/" -}}
{{- $found | default (ternary "443" "80" (hasPrefix "https:" .)) -}}
{{- end -}}
