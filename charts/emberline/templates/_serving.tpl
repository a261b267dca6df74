{{/* An item of serving.models with what it leaves to the chart. (dict "root" $ "model" M) */}}
{{- define "emberline.serving.model" -}}
{{- $serving := .root.Values.serving -}}
{{- $shared := pick $serving "replicas" "autoscaling" "resources" | deepCopy -}}
{{- $own := dict "version" "champion" "host" "" -}}
{{- mergeOverwrite $shared $own (deepCopy .model) | toYaml -}}
{{- end -}}

{{/* Pods of the canary: its share of all, at least one, where the Service weighs by pods; else as many as the model's. */}}
{{- define "emberline.serving.canaryReplicas" -}}
{{- if .gateway -}}
{{ .model.replicas }}
{{- else -}}
{{ max 1 (round (divf (mulf .model.replicas .model.canary.weight) 100) 0 | int) }}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "model" M) */}}
{{- define "emberline.serving.selector" -}}
{{ include "emberline.selector" (dict "root" .root "component" "serving") }}
emberline/model: {{ include "emberline.slug" .model.name | quote }}
{{- end -}}

{{/* One Deployment of a model. (dict "root" $ "model" M "name" N "track" "stable"|"canary" "version" V "replicas" R); replicas -1: a HorizontalPodAutoscaler says */}}
{{- define "emberline.serving.deployment" -}}
{{- $root := .root -}}
{{- $serving := $root.Values.serving -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  labels:
    {{- include "emberline.labels" (dict "root" $root "component" "serving") | nindent 4 }}
    emberline/model: {{ include "emberline.slug" .model.name | quote }}
    emberline/track: {{ .track }}
spec:
  {{- if ge (int .replicas) 0 }}
  replicas: {{ .replicas }}
  {{- end }}
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "emberline.serving.selector" . | nindent 6 }}
      emberline/track: {{ .track }}
  template:
    metadata:
      labels:
        {{- include "emberline.podLabels" (dict "root" $root "component" "serving") | nindent 8 }}
        emberline/model: {{ include "emberline.slug" .model.name | quote }}
        emberline/track: {{ .track }}
      annotations:
        checksum/public-keys: {{ toJson $root.Values.signing.publicKeys | sha256sum }}
    spec:
      {{- include "emberline.pod" (dict "root" $root "component" "serving") | nindent 6 }}
      {{- include "emberline.placement" $root | nindent 6 }}
      terminationGracePeriodSeconds: {{ $serving.terminationGracePeriodSeconds }}
      topologySpreadConstraints:
        {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - topologyKey: {{ . }}
          maxSkew: 1
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{ include "emberline.serving.selector" $ | nindent 14 }}
        {{- end }}
      containers:
        - name: serve
          {{- include "emberline.ownImage" $root | nindent 10 }}
          command: [emberline, serve]
          args:
            - {{ .model.name | quote }}
            - --version={{ .version }}
            - --host=0.0.0.0
            - --port=8080
            {{- with $root.Values.storage.uri }}
            - --storage={{ . }}
            {{- end }}
            {{- with .model.challenger }}
            - --challenger={{ .version }}
            - --mode={{ .mode | default "shadow" }}
            - --weight={{ divf .weight 100 }}
            {{- end }}
            {{- if gt (float64 $serving.recordShare) 0.0 }}
            - --record-share={{ $serving.recordShare }}
            {{- end }}
          env:
            {{- include "emberline.env" $root | nindent 12 }}
            {{- include "emberline.env.tracking" $root | nindent 12 }}
            {{- include "emberline.env.trust" $root | nindent 12 }}
          ports:
            - {name: http, containerPort: 8080, protocol: TCP}
          startupProbe: {{ include "emberline.httpProbe" (dict "path" "/ping") | nindent 12 }}
            periodSeconds: 5
            failureThreshold: 60
          readinessProbe: {{ include "emberline.httpProbe" (dict "path" "/ping") | nindent 12 }}
            periodSeconds: 5
          livenessProbe: {{ include "emberline.httpProbe" (dict "path" "/ping") | nindent 12 }}
            periodSeconds: 10
            failureThreshold: 6
          lifecycle:
            preStop: {exec: {command: [sleep, "5"]}}  # until no Service sends to it
          resources: {{ toYaml .model.resources | nindent 12 }}
          volumeMounts:
            {{- include "emberline.scratchMounts" $root | nindent 12 }}
            {{- include "emberline.trustMounts" $root | nindent 12 }}
      volumes:
        {{- include "emberline.scratch" $root | nindent 8 }}
        {{- include "emberline.trust" $root | nindent 8 }}
{{- end -}}

{{/* (dict "root" $ "model" M "name" N), optional: "track" */}}
{{- define "emberline.serving.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  labels:
    {{- include "emberline.labels" (dict "root" .root "component" "serving") | nindent 4 }}
    emberline/model: {{ include "emberline.slug" .model.name | quote }}
spec:
  selector:
    {{- include "emberline.serving.selector" . | nindent 4 }}
    {{- with .track }}
    emberline/track: {{ . }}
    {{- end }}
  ports:
    - {name: http, port: 80, targetPort: http, protocol: TCP}
{{- end -}}
