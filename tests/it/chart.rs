//! The Helm chart with the values that `configure` writes, by Helm itself.

use std::path::Path;
use std::process::Command;

use crate::support::program::Indexer;
use crate::support::tool;

const CHART: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/packaging/helm/teleport-event-indexer"
);

/// What Helm prints.
fn run(helm: &Path, args: &[&str]) -> String {
    let output = Command::new(helm).args(args).output();
    let output = output.expect("helm can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).expect("Helm prints UTF-8")
}

/// The configuration within the manifests, with the places of the container in the folder.
fn configuration(manifests: &str) -> String {
    let (_, text) = manifests.split_once("  config.toml: |\n").expect("a file");
    let lines = text
        .lines()
        .take_while(|line| line.starts_with("    ") || line.is_empty());
    let lines: Vec<_> = lines.map(str::trim_start).collect();
    let text = lines.join("\n");
    text.replace("file:/secrets/", "file:")
        .replace("\"/state\"", "\"state\"")
}

#[test]
fn the_chart_takes_what_configure_writes() {
    let Some(helm) = tool("helm") else {
        return;
    };
    let indexer = Indexer::new();
    std::fs::create_dir(indexer.directory().join("elasticsearch")).expect("a new folder");
    indexer.write("elasticsearch/api-key", "id:key");
    std::fs::create_dir(indexer.directory().join("token")).expect("a new folder");
    indexer.write(
        "token/token",
        "a-token-that-nobody-guesses-and-that-is-long",
    );
    let cloud_id = "--elasticsearch-cloud-id=audit:Y2xvdWQuZXhhbXBsZS5jb20kZWxhc3RpY3NlYXJjaA==";
    let hosts = "--elasticsearch-hosts=https://one.example.com:9200";
    let some: &[&str] = &[];
    let mute: &[&str] = &["--set=listen.enabled=false"];
    let all: &[&str] = &[
        "--set=tbot.enabled=true,serviceMonitor.enabled=true",
        "--set=elasticsearch.caSecret=ca,persistence.storageClass=fast",
    ];
    let cases = [
        (
            "hosts",
            vec![
                hosts,
                "--elasticsearch-ca=ca.crt",
                "--types=user.login,session.*",
            ],
            some,
        ),
        (
            "from",
            vec![hosts, "--from=teleport-event-handler.toml"],
            some,
        ),
        (
            "cloud",
            vec![cloud_id, "--window-size=12h", "--elasticsearch-gzip=false"],
            mute,
        ),
        (
            "led",
            vec![hosts, "--state=elasticsearch", "--state-name=audit"],
            some,
        ),
        (
            "all",
            vec![hosts, "--batch=500", "--limits-events-per-second=20000000"],
            all,
        ),
    ];
    indexer.write(
        "teleport-event-handler.toml",
        "storage = \"./storage\"\n[teleport]\naddr = \"teleport.example.com:443\"\nidentity = \"identity\"\n",
    );
    for (directory, settings, set) in cases {
        let args = [
            &["configure", directory, "teleport.example.com:443"],
            &settings[..],
        ]
        .concat();
        let output = indexer.run(&args);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let values = indexer.directory().join(directory).join("helm-values.yaml");
        let values = format!("--values={}", values.display());
        let with = [&[CHART, values.as_str()], set].concat();
        run(&helm, &[&["lint", "--strict"], &with[..]].concat());
        let manifests = run(
            &helm,
            &[&["template", "audit", "--kube-version=1.31"], &with[..]].concat(),
        );
        let config = configuration(&manifests);
        indexer.write("config.toml", &config);
        let status = indexer.run(&["status", "-c", "config.toml"]);
        assert_ne!(status.code, Some(2), "{}\n{config}", status.stderr);
        // Whoever is to be watched has probes, and a port that only the token opens.
        for part in [
            "livenessProbe:\n            httpGet: {path: /livez, port: https, scheme: HTTPS}",
            "readinessProbe:\n            httpGet: {path: /readyz, port: https, scheme: HTTPS}",
            "addr = \"0.0.0.0:9747\"",
            "token = \"file:token/token\"",
        ] {
            let is_there = manifests.contains(part) || config.contains(part);
            assert_eq!(is_there, set != mute, "{part} {manifests}");
        }
        for part in [
            "args: [start, --config, /config/config.toml, --import-state, /event-handler]",
            "- {name: event-handler, mountPath: /event-handler, readOnly: true}",
            "persistentVolumeClaim: {claimName: teleport-plugin-event-handler}",
        ] {
            assert_eq!(manifests.contains(part), directory == "from", "{manifests}");
        }
        // A state in Elasticsearch: several pods and no volume for them.
        for (part, is_led) in [
            ("kind: StatefulSet\n", false),
            ("volumeClaimTemplates:\n", false),
            ("  maxUnavailable: 1\n  selector", false),
            ("mountPath: /state", false),
            ("kind: Deployment\n", true),
            ("  replicas: 2\n", true),
            ("  minAvailable: 1\n  selector", true),
            ("topologyKey: kubernetes.io/hostname\n", true),
        ] {
            let is_there = manifests.contains(part);
            assert_eq!(
                is_there,
                is_led == (directory == "led"),
                "{part} {manifests}"
            );
        }
        match directory {
            "from" => assert!(!config.contains("start-time"), "{config}"),
            "hosts" => {
                assert!(
                    config.contains("types = [\"user.login\", \"session.*\"]"),
                    "{config}"
                );
                assert!(
                    manifests.contains("/secrets/elasticsearch-ca/ca.crt"),
                    "{manifests}"
                );
                assert!(config.contains("start-time = "), "{config}");
            }
            "cloud" => assert!(!config.contains("hosts"), "{config}"),
            "led" => assert!(!config.contains("storage"), "{config}"),
            _ => assert!(manifests.contains("kind: ServiceMonitor"), "{manifests}"),
        }
    }
}

/// What Helm says, that does not render it with these.
fn refused(helm: &Path, set: &str) -> String {
    let args = [
        "template",
        "audit",
        CHART,
        "--kube-version=1.31",
        "--set",
        set,
    ];
    let output = Command::new(helm).args(args).output();
    let output = output.expect("helm can be run");
    assert!(!output.status.success(), "{set} is taken");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_chart_refuses_pods_that_would_do_the_same_work_again() {
    let Some(helm) = tool("helm") else {
        return;
    };
    for set in ["replicas=2", "replicas=2,config.state=sqlite"] {
        let said = refused(&helm, set);
        assert!(
            said.contains("replicas: Must be less than or equal to 1"),
            "{said}"
        );
    }
    let led = "config.state=elasticsearch";
    let said = refused(&helm, &format!("{led},importState.claim=handler"));
    assert!(
        said.contains("importState.claim needs replicas: 1"),
        "{said}"
    );
    let said = refused(&helm, "config.state=disk");
    assert!(said.contains("config.state must be one of"), "{said}");
    let three = format!("--set={led},replicas=3");
    let args = ["template", "audit", CHART, "--kube-version=1.31", &three];
    assert!(run(&helm, &args).contains("  replicas: 3\n"));
    let first = format!("--set={led},replicas=1,importState.claim=handler");
    let args = ["template", "audit", CHART, "--kube-version=1.31", &first];
    let manifests = run(&helm, &args);
    assert!(
        manifests.contains("  maxUnavailable: 1\n  selector"),
        "{manifests}"
    );
}
