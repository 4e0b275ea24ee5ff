{{- define "indexer.pod" -}}
{{- $led := include "indexer.led" . -}}
metadata:
  labels:
    {{- include "indexer.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # All but log-level is read at the start alone.
    checksum/config: {{ include "indexer.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "indexer.serviceAccount" . }}
  automountServiceAccountToken: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: indexer
      image: {{ include "indexer.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [start, --config, /config/config.toml{{ if .Values.importState.claim }}, --import-state, /event-handler{{ end }}]
      securityContext: &locked
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      {{- if .Values.listen.enabled }}
      ports:
        - {name: https, containerPort: {{ .Values.listen.port }}}
      # Both answer without the token.
      livenessProbe:
        httpGet: {path: /livez, port: https, scheme: HTTPS}
        periodSeconds: 20
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: https, scheme: HTTPS}
        periodSeconds: 10
        timeoutSeconds: 5
      {{- end }}
      resources: {{ toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        {{- if not $led }}
        - {name: state, mountPath: /state}
        {{- end }}
        - {name: config, mountPath: /config, readOnly: true}
        {{- if .Values.importState.claim }}
        - {name: event-handler, mountPath: /event-handler, readOnly: true}
        {{- end }}
        - {name: elasticsearch, mountPath: /secrets/elasticsearch, readOnly: true}
        {{- if .Values.elasticsearch.caSecret }}
        - {name: elasticsearch-ca, mountPath: /secrets/elasticsearch-ca, readOnly: true}
        {{- end }}
        {{- if .Values.tbot.enabled }}
        - {name: tbot, mountPath: /tbot, readOnly: true}
        {{- else }}
        - {name: teleport, mountPath: /secrets/teleport, readOnly: true}
        {{- end }}
        {{- if .Values.listen.enabled }}
        - {name: tls, mountPath: /secrets/tls, readOnly: true}
        - {name: token, mountPath: /secrets/token, readOnly: true}
        {{- end }}
    {{- if .Values.tbot.enabled }}
    - name: tbot
      image: "{{ .Values.tbot.image.repository }}:{{ .Values.tbot.image.tag }}"
      args: [start, -c, /config/tbot.yaml]
      env:
        - {name: KUBERNETES_TOKEN_PATH, value: /join/token}
      securityContext: *locked
      resources: {{ toYaml .Values.tbot.resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /config, readOnly: true}
        - {name: join, mountPath: /join, readOnly: true}
        - {name: tbot, mountPath: /tbot}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpreadConstraints }}
  topologySpreadConstraints: {{ toYaml .Values.topologySpreadConstraints | nindent 4 }}
  {{- else if $led }}
  # On nodes and in zones of their own where there are such; on one node rather than not at all.
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "indexer.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "indexer.name" . }}}
    {{- with .Values.importState.claim }}
    - name: event-handler
      persistentVolumeClaim: {claimName: {{ . }}}
    {{- end }}
    - name: elasticsearch
      secret:
        secretName: {{ required "elasticsearch.existingSecret names the secret with the API key" .Values.elasticsearch.existingSecret }}
        items: [{key: {{ .Values.elasticsearch.apiKeyKey }}, path: api-key}]
        defaultMode: 0440
    {{- if .Values.elasticsearch.caSecret }}
    - name: elasticsearch-ca
      secret: {secretName: {{ .Values.elasticsearch.caSecret }}}
    {{- end }}
    {{- if .Values.tbot.enabled }}
    - name: tbot
      emptyDir: {medium: Memory, sizeLimit: 8Mi}
    - name: join
      projected:
        sources:
          - serviceAccountToken:
              path: token
              # As long as Teleport accepts; the kubelet renews it.
              expirationSeconds: 600
              audience: {{ .Values.tbot.clusterName | quote }}
    {{- else }}
    - name: teleport
      secret:
        secretName: {{ required "teleport.identitySecret names the secret with the identity" .Values.teleport.identitySecret }}
        defaultMode: 0440
    {{- end }}
    {{- if .Values.listen.enabled }}
    - name: tls
      secret: {secretName: {{ include "indexer.tlsSecret" . }}, defaultMode: 0440}
    - name: token
      secret: {secretName: {{ include "indexer.tokenSecret" . }}, defaultMode: 0440}
    {{- end }}
    {{- if $led }}
    {{- else if not .Values.persistence.enabled }}
    - name: state
      emptyDir: {}
    {{- else if .Values.persistence.existingClaim }}
    - name: state
      persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim }}}
    {{- end }}
{{- end }}
