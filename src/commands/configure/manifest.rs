//! Kubernetes' manifest, for one pod with a volume or, with the state in Elasticsearch, for several
//! without one.

use super::handover::{self, Handover};
use crate::config::keys;
use crate::config::written::Written;

/// The place of a state in a file.
const CLAIM: &str = "# One replica with a volume for its state: a local or block volume, as network file systems are refused.
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: teleport-event-indexer}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 4Gi}}
";
const STATE_MOUNT: &str = "            - {name: state, mountPath: /state}\n";
const STATE_VOLUME: &str =
    "        - {name: state, persistentVolumeClaim: {claimName: teleport-event-indexer}}\n";

/// With a state in Elasticsearch: how many of the pods may be away.
const BUDGET: &str = "# The state lies in Elasticsearch: one of the pods leads, the others stand by, and none has a volume.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: teleport-event-indexer}
spec:
  @BUDGET@
  selector: {matchLabels: {app: teleport-event-indexer}}
";
const SPREAD: &str = "      # On nodes of their own where there are such.
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app: teleport-event-indexer}}
";

/// The state lies in Elasticsearch.
pub(super) fn is_led(written: &Written) -> bool {
    written.text_of(&keys::STATE).as_deref() == Some("elasticsearch")
}

/// The manifest, but for the configuration and the secret's name.
pub(super) fn manifest(written: &Written, handover: Option<&Handover>) -> String {
    let template = include_str!("../../../templates/configure/kubernetes.yaml");
    let (replicas, budget) = match (is_led(written), handover) {
        (false, _) => ("  replicas: 1\n  strategy: {type: Recreate}\n", None),
        (true, None) => ("  replicas: 2\n", Some("minAvailable: 1")),
        // The first of all daemons takes it over, alone.
        (true, Some(_)) => (
            "  # 2 once the event handler's state is taken over, and its claim is no more named here.\n  replicas: 1\n",
            Some("maxUnavailable: 1"),
        ),
    };
    let (before, mount, volume, spread) = match budget {
        None => (CLAIM.to_owned(), STATE_MOUNT, STATE_VOLUME, ""),
        Some(budget) => (BUDGET.replace("@BUDGET@", budget), "", "", SPREAD),
    };
    let text = template
        .replace("@BEFORE@", &before)
        .replace("@REPLICAS@", replicas)
        .replace("@STATE-MOUNT@", mount)
        .replace("@STATE-VOLUME@", volume)
        .replace("@SPREAD@", spread);
    handover::manifest(handover, &text)
}
