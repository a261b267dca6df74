{{/* What names begin with: a DNS-1035 label, though a release's name may begin with a digit and hold dots. */}}
{{- define "emberline.base" -}}
{{- $given := .Values.fullnameOverride -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if $given -}}
{{ $given }}
{{- else if regexMatch "^[0-9]" $release -}}
emberline-{{ $release }}
{{- else if contains "emberline" $release -}}
{{ $release }}
{{- else -}}
{{ $release }}-emberline
{{- end -}}
{{- end -}}

{{/* A name of at most `limit` characters (63 by default), unique to the release even where it is cut. (dict "root" $ "suffix" S "limit" N) */}}
{{- define "emberline.name" -}}
{{- $base := include "emberline.base" .root -}}
{{- $limit := .limit | default 63 -}}
{{- if gt (add (len $base) 1 (len .suffix)) $limit -}}
{{- $kept := sub (sub $limit (len .suffix)) 10 | int -}}
{{ trunc $kept $base | trimSuffix "-" }}-{{ printf "%s/%s" .root.Release.Name $base | sha256sum | trunc 8 }}-{{ .suffix }}
{{- else -}}
{{ $base }}-{{ .suffix }}
{{- end -}}
{{- end -}}

{{- define "emberline.mlflow.name" -}}
{{ include "emberline.name" (dict "root" . "suffix" "mlflow") }}
{{- end -}}

{{/* A StatefulSet's pods carry its name and 11 characters more in a label. */}}
{{- define "emberline.postgresql.name" -}}
{{ include "emberline.name" (dict "root" . "suffix" "postgresql" "limit" 52) }}
{{- end -}}

{{/* KubeRay cuts the names that it derives from this one if they are over 50 characters. */}}
{{- define "emberline.ray.name" -}}
{{ include "emberline.name" (dict "root" . "suffix" "ray" "limit" 40) }}
{{- end -}}

{{- define "emberline.ray.head" -}}
{{ include "emberline.ray.name" . }}-head-svc
{{- end -}}

{{- define "emberline.webhook.name" -}}
{{ include "emberline.name" (dict "root" . "suffix" "webhook") }}
{{- end -}}

{{/* (dict "root" $ "model" M), M an item of serving.models */}}
{{- define "emberline.serving.name" -}}
{{ include "emberline.name" (dict "root" .root "suffix" (printf "serve-%s" (include "emberline.slug" .model.name)) "limit" 56) }}
{{- end -}}

{{/* A registered model's name as a part of an object's. */}}
{{- define "emberline.slug" -}}
{{ . | lower | replace "_" "-" | replace "." "-" }}
{{- end -}}

{{/* The ServiceAccount of a component. (dict "root" $ "component" C) */}}
{{- define "emberline.account" -}}
{{ include "emberline.name" (dict "root" .root "suffix" .component "limit" 50) }}
{{- end -}}

{{- define "emberline.keys.name" -}}
{{ include "emberline.name" (dict "root" . "suffix" "public-keys") }}
{{- end -}}

{{/* What selects the pods of a component; KubeRay leaves these labels as they are. (dict "root" $ "component" C) */}}
{{- define "emberline.selector" -}}
app.kubernetes.io/name: emberline
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of pods: no versions, so that an upgrade of the chart alone restarts none. */}}
{{- define "emberline.podLabels" -}}
{{ include "emberline.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "emberline.labels" -}}
{{ include "emberline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: emberline
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image by its digest, or else its tag. (dict "image" I "tag" DEFAULT) */}}
{{- define "emberline.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end -}}
{{- end -}}
