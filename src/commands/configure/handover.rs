//! The way to the event handler's state, so that the first start goes on where that has stopped. It is
//! in all that starts the program: what began without it would begin at its own moment, and nothing
//! would tell of what lies between.

use std::fs;

use crate::cli::Configure;
use crate::config::written::Written;

/// Where the event handler's own chart keeps its state, if its release has the usual name.
const CLAIM: &str = "teleport-plugin-event-handler";

/// Stands where its storage is not known. No folder has that name, so a start says so and ends.
const UNKNOWN: &str = "EVENT-HANDLER-STORAGE";

/// What is taken over from an event handler.
pub(super) struct Handover {
    storage: String,
}

impl Handover {
    /// `None` if there is no event handler.
    pub(super) fn of(options: &Configure, written: &Written) -> Option<Self> {
        options.from.as_ref()?;
        let storage = written.former_storage.as_deref().unwrap_or(UNKNOWN);
        // What the file says is meant from where the event handler runs; if that is here, it holds
        // from everywhere.
        let here = fs::canonicalize(storage).ok();
        let here = here.and_then(|path| path.to_str().map(str::to_owned));
        Some(Self {
            storage: here.unwrap_or_else(|| storage.to_owned()),
        })
    }

    /// Behind `start` in a shell.
    pub(super) fn flag(&self) -> String {
        format!(" --import-state {}", self.storage)
    }

    /// What there is to know before that start.
    pub(super) fn steps(&self) -> String {
        let storage = &self.storage;
        format!(
            "
The event handler's state says where to go on. Stop the event handler before the first start, and keep {storage}
until the log says \"taken over from the event handler\"; the systemd unit names that folder, too, and its user must be able to read it.
On Kubernetes scale the event handler to 0 replicas, as `helm uninstall` would delete its claim, and name that claim in helm-values.yaml
(importState) or kubernetes.yaml: the pod waits until it is there. If the event handler ran elsewhere: docs/migration.md.
"
        )
    }

    /// The systemd unit, with the flag.
    pub(super) fn unit(&self, unit: &str) -> String {
        let line = unit.lines().find(|line| line.starts_with("ExecStart="));
        let line = line.expect("a unit starts something");
        let storage = self.storage.replace('\\', "\\\\").replace('"', "\\\"");
        let storage = storage.replace('%', "%%").replace('$', "$$");
        unit.replace(line, &format!("{line} --import-state \"{storage}\""))
    }
}

/// Kubernetes' manifest, with the claim if there is an event handler.
pub(super) fn manifest(handover: Option<&Handover>, manifest: &str) -> String {
    let mount = "            - {name: event-handler, mountPath: /event-handler, readOnly: true}\n";
    let volume = format!(
        "        # The event handler's claim, as `kubectl get pvc` names it. Afterwards this, its mount and\n        \
         # --import-state may stay or go.\n        \
         - {{name: event-handler, persistentVolumeClaim: {{claimName: {CLAIM}}}}}\n"
    );
    let (args, mount, volume) = match handover {
        Some(_) => (", --import-state, /event-handler", mount, volume.as_str()),
        None => ("", "", ""),
    };
    manifest
        .replace("@IMPORT-ARGS@", args)
        .replace("@IMPORT-MOUNT@", mount)
        .replace("@IMPORT-VOLUME@", volume)
}

/// The chart's values for it.
pub(super) fn values(handover: Option<&Handover>, is_led: bool) -> String {
    let replicas = match is_led {
        true => {
            "# The first of all pods takes it over, alone. Once this is gone: 2.\nreplicas: 1\n"
        }
        false => "",
    };
    handover.map_or_else(String::new, |_| {
        format!(
            "
# The first start goes on where the event handler has stopped: its claim, as `kubectl get pvc` names it.
# The pod waits until that is there. Afterwards this may stay or go.
importState:
  claim: {CLAIM}
{replicas}"
        )
    })
}
