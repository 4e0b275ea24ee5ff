//! Kubernetes' manifest, for one pod with a volume or, with the state in Elasticsearch, for several
//! without one.

use super::handover::{self, Handover};
use crate::config::keys;
use crate::config::written::Written;

/// Places in the template: what stands there with a state in a file, and with one in Elasticsearch.
const PLACES: [(&str, &str, &str); 5] = [
    (
        "@BEFORE@",
        "# One replica with a volume for its state: a local or block volume, as network file systems are refused.
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: teleport-event-indexer}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 4Gi}}
",
        "# The state lies in Elasticsearch: one of the pods leads, the others stand by, and none has a volume.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: teleport-event-indexer}
spec:
  minAvailable: 1
  selector: {matchLabels: {app: teleport-event-indexer}}
",
    ),
    (
        "@REPLICAS@",
        "  replicas: 1\n  strategy: {type: Recreate}\n",
        "  replicas: 2\n",
    ),
    (
        "@STATE-MOUNT@",
        "            - {name: state, mountPath: /state}\n",
        "",
    ),
    (
        "@STATE-VOLUME@",
        "        - {name: state, persistentVolumeClaim: {claimName: teleport-event-indexer}}\n",
        "",
    ),
    (
        "@SPREAD@",
        "",
        "      # On nodes of their own where there are such.
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app: teleport-event-indexer}}
",
    ),
];

/// The state lies in Elasticsearch.
pub(super) fn is_led(written: &Written) -> bool {
    written.text_of(&keys::STATE).as_deref() == Some("elasticsearch")
}

/// The manifest, but for the configuration and the secret's name.
pub(super) fn manifest(written: &Written, handover: Option<&Handover>) -> String {
    let template = include_str!("../../../templates/configure/kubernetes.yaml");
    let is_led = is_led(written);
    let mut text = template.to_owned();
    for (place, in_a_file, in_elasticsearch) in PLACES {
        let with = if is_led { in_elasticsearch } else { in_a_file };
        text = text.replace(place, with);
    }
    if is_led && handover.is_some() {
        // The first of all daemons takes it over, alone.
        text = text.replace(
            "  replicas: 2\n",
            "  # 2 once the event handler's state is taken over, and its claim is no more named here.\n  replicas: 1\n",
        );
        text = text.replace("  minAvailable: 1\n", "  maxUnavailable: 1\n");
    }
    handover::manifest(handover, &text)
}
