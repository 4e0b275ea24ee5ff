//! The files that prove who we are: every form that works, and what is said of each that does not.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one, not what tests call"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use teleport_event_indexer::config::CredentialPaths;
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::output::Chain;
use teleport_event_indexer::teleport::identity::Credentials;
use tempfile::TempDir;

use crate::support::faketeleport::FakeTeleport;
use crate::support::program::Indexer;
use crate::support::scratch;
use crate::support::stand_ins::{NOBODY, Teleport};

/// Private keys below `tests/keys`, each with its certificate.
const KEYS: &[(&str, &str)] = &[
    ("rsa-pkcs1", "rsa"),
    ("rsa-pkcs8", "rsa"),
    ("ecdsa-sec1", "ecdsa"),
    ("ecdsa-pkcs8", "ecdsa"),
    ("ed25519-pkcs8", "ed25519"),
];

const SSH_CERTIFICATE: &str = "ecdsa-sha2-nistp256-cert-v01@openssh.com AAAA\n";
const SSH_AUTHORITY: &str = "@cert-authority keys.example ssh-ed25519 AAAA\n";

fn key_path(name: &str) -> PathBuf {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
    keys.join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(key_path(name)).unwrap()
}

/// A folder for one identity file.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(scratch("identity"))
    }

    fn load(&self, bytes: impl AsRef<[u8]>) -> Result<Credentials, String> {
        let path = self.0.path().join("identity");
        fs::write(&path, bytes).unwrap();
        self.loaded(&CredentialPaths::Identity(path))
    }

    fn loaded(&self, paths: &CredentialPaths) -> Result<Credentials, String> {
        // The same as main does.
        rustls::crypto::ring::default_provider()
            .install_default()
            .unwrap_or_default();
        let folder = format!("{}/", self.0.path().display());
        let keys = format!("{}/", key_path("").display());
        Credentials::load(paths).map_err(|error| {
            let message = Chain(&error).to_string();
            message
                .replace(&folder, "")
                .replace(&keys.replace("//", "/"), "")
        })
    }

    fn refused(&self, bytes: impl AsRef<[u8]>) -> String {
        match self.load(bytes) {
            Ok(credentials) => panic!("{credentials:?} was accepted"),
            Err(message) => message,
        }
    }
}

#[test]
fn every_kind_and_form_of_key_works() {
    let place = Place::new();
    for (key, certificate) in KEYS {
        let key_text = text(&format!("{key}.key"));
        let certificate_text = text(&format!("{certificate}.crt"));
        let ca = text("ca.crt");
        let identity =
            format!("{key_text}{SSH_CERTIFICATE}{certificate_text}{SSH_AUTHORITY}{ca}{ca}");
        for form in [
            identity.clone(),
            identity.replace('\n', "\r\n"),
            format!("\u{feff}{identity}"),
            identity.trim_end().to_owned(),
        ] {
            let credentials = place
                .load(&form)
                .unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_eq!(credentials.cluster, "keys.example");
        }
        let trio = CredentialPaths::KeyPair {
            key: key_path(&format!("{key}.key")),
            cert: key_path(&format!("{certificate}.crt")),
            ca: key_path("ca.crt"),
        };
        place
            .loaded(&trio)
            .unwrap_or_else(|error| panic!("{key}: {error}"));
    }
}

#[test]
fn a_certificate_leads_to_the_cluster_that_it_routes_to() {
    let place = Place::new();
    let root = Cluster::new("root.example").unwrap();
    let cluster = |route_to: Option<&str>| {
        let options = IdentityOptions {
            route_to: route_to.map(str::to_owned),
            ..IdentityOptions::default()
        };
        let identity = root.identity(&options).unwrap();
        place.load(identity.text()).unwrap().cluster
    };
    assert_eq!(cluster(None), "root.example");
    assert_eq!(cluster(Some("leaf.example")), "leaf.example");
}

#[test]
fn broken_identity_files_are_told_by_line() {
    let place = Place::new();
    let (key, certificate, ca) = (text("ecdsa-sec1.key"), text("ecdsa.crt"), text("ca.crt"));
    let whole = format!("{key}{SSH_CERTIFICATE}{certificate}{SSH_AUTHORITY}{ca}");

    assert_snapshot!(place.refused(""), @"the identity file identity: it is empty");
    assert_snapshot!(place.refused(" \n\n"), @"the identity file identity: it is empty");
    assert_snapshot!(place.refused([0x30, 0x82, 0xff, 0x00]), @"the identity file identity: it is not a text file");
    assert_snapshot!(place.refused("Not Found\n"), @"the identity file identity: it should hold a private key, a certificate and the cluster's CAs as PEM");
    assert_snapshot!(place.refused(&key), @"the identity file identity: it should hold a private key, a certificate and the cluster's CAs as PEM");
    assert_snapshot!(place.refused(format!("{key}{certificate}")), @"the identity file identity: it holds no CA certificate behind the client certificate");
    assert_snapshot!(place.refused(format!("{certificate}{key}{ca}")), @"the identity file identity: line 1: a private key must come first, and this is CERTIFICATE");
    assert_snapshot!(place.refused(format!("{key}{key}{ca}")), @"the identity file identity: line 6: a certificate must be here, and this is EC PRIVATE KEY");
    assert_snapshot!(place.refused(format!("{key}{certificate}{key}")), @"the identity file identity: line 17: a certificate must be here, and this is EC PRIVATE KEY");

    // Cut off within the certificate, and within its own key.
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    assert_snapshot!(place.refused(lines[..10].concat()), @"the identity file identity: line 7: the file ends within this PEM block");
    assert_snapshot!(place.refused(lines[..3].concat()), @"the identity file identity: line 1: the file ends within this PEM block");
    // The end of the key went lost.
    assert_snapshot!(place.refused(lines[..4].concat() + &lines[5..].concat()), @"the identity file identity: line 1: this PEM block has no end before the next begins on line 6");
    // The end of the key's first line went lost: what follows its label is the key.
    assert_snapshot!(place.refused(whole.replacen('\n', "", 1)), @"the identity file identity: line 1: a private key must come first, and this is a block without a proper first line; did line ends go lost?");
    // A line of the certificate, and one of the CA.
    assert_snapshot!(place.refused(lines[..9].concat() + &lines[10..].concat()), @"the identity file identity: line 7: this certificate is damaged");
    assert_snapshot!(place.refused(lines[..20].concat() + &lines[21..].concat()), @"the identity file identity: line 19: this CA certificate is damaged");
    assert_snapshot!(place.refused(whole.replacen("MHc", "MH!", 1)), @"the identity file identity: line 1: this EC PRIVATE KEY cannot be used");

    let other = text("ed25519-pkcs8.key");
    assert_snapshot!(place.refused(format!("{other}{certificate}{ca}")), @"the identity file identity: line 1: this private key belongs to another certificate");
    let other = text("rsa-pkcs1.key");
    assert_snapshot!(place.refused(format!("{other}{certificate}{ca}")), @"the identity file identity: line 1: this private key belongs to another certificate");
    let encrypted = text("ecdsa-encrypted.key");
    assert_snapshot!(place.refused(format!("{encrypted}{certificate}{ca}")), @"the identity file identity: line 1: this ENCRYPTED PRIVATE KEY cannot be used");
    let ssh =
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n-----END OPENSSH PRIVATE KEY-----\n";
    assert_snapshot!(place.refused(format!("{ssh}{certificate}{ca}")), @"the identity file identity: line 1: this OPENSSH PRIVATE KEY cannot be used");
}

#[test]
fn a_broken_trio_is_told_by_file() {
    let place = Place::new();
    let trio = |key: &str, cert: &str, ca: &str| {
        place.loaded(&CredentialPaths::KeyPair {
            key: key_path(key),
            cert: key_path(cert),
            ca: key_path(ca),
        })
    };
    let refused = |key, cert, ca| trio(key, cert, ca).unwrap_err();
    // openssl writes the curve before the key.
    trio("ecdsa-parameters.key", "ecdsa.crt", "ca.crt").unwrap();
    assert_snapshot!(refused("rsa-pkcs8.key", "ecdsa.crt", "ca.crt"), @"the key file rsa-pkcs8.key: line 1: this private key belongs to another certificate");
    assert_snapshot!(refused("ecdsa.crt", "ecdsa.crt", "ca.crt"), @"the key file ecdsa.crt: line 1: a private key must come first, and this is CERTIFICATE");
    assert_snapshot!(refused("ecdsa-sec1.key", "ecdsa-sec1.key", "ca.crt"), @"the certificate file ecdsa-sec1.key: line 1: a certificate must be here, and this is EC PRIVATE KEY");
    assert_snapshot!(refused("ecdsa-sec1.key", "ecdsa.crt", "README.md"), @"the CA file README.md: it holds no PEM");
    assert_snapshot!(refused("README.md", "ecdsa.crt", "ca.crt"), @"the key file README.md: it holds no PEM");
    assert_snapshot!(refused("ecdsa-sec1.key", "none.crt", "ca.crt"), @"cannot read the certificate file none.crt: No such file or directory (os error 2)");
}

#[test]
fn a_file_that_others_can_read_is_warned_of_once() {
    let teleport = Teleport::start("a.example");
    let indexer = Indexer::new();
    indexer.configure(&teleport.addr(), &format!("http://{NOBODY}"), "");
    indexer.identify(&teleport.cluster, &IdentityOptions::default());
    let identity = indexer.directory().join("identity");
    let warnings = |mode| {
        fs::set_permissions(&identity, Permissions::from_mode(mode)).unwrap();
        let args = [
            "start",
            "--dry-run",
            "--exit-on-last-event",
            "-c",
            "config.toml",
        ];
        let output = indexer.run(&args);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let lines = output.stderr.lines().filter(|line| line.contains("chmod"));
        let words = lines.map(|line| line.split_once("WARN ").unwrap().1.to_owned());
        words.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(warnings(0o600), "");
    let warning = "other users can read the private key in identity: chmod 600 identity";
    assert_eq!(warnings(0o640), warning);
    assert_eq!(warnings(0o604), warning);
}

/// Files as Teleport's own library writes them, shown to a server of that library.
#[test]
fn teleport_accepts_every_kind_of_key_and_refuses_strangers() {
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let args = ["--key-type", kind, "--events", "10", "--sessions", "0"];
        let Some(teleport) = FakeTeleport::start(&args) else {
            return;
        };
        let indexer = Indexer::new();
        let folder = teleport.directory().to_str().unwrap();
        let read = |credentials: &[(&str, &str)]| {
            let mut args = vec![
                "start".to_owned(),
                "--dry-run".to_owned(),
                "--exit-on-last-event".to_owned(),
                "--start-time=2020-01-01".to_owned(),
                format!("--teleport-addr={}", teleport.addr()),
            ];
            let files = credentials.iter();
            args.extend(files.map(|(flag, name)| format!("--teleport-{flag}={folder}/{name}")));
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            indexer.run(&args)
        };
        let trio = [
            ("key", "identity.key"),
            ("cert", "identity.crt"),
            ("ca", "identity.cas"),
        ];
        for credentials in [&[("identity", "identity")][..], &trio] {
            let output = read(credentials);
            assert_eq!(output.code, Some(0), "{kind}: {}", output.stderr);
            assert_eq!(output.stdout.lines().count(), 10, "{kind}");
        }
        let output = read(&[("identity", "identity-untrusted")]);
        assert_eq!(output.code, Some(1), "{kind}: {}", output.stderr);
        let said = "failed: it does not accept our certificate\n";
        assert!(output.stderr.contains(said), "{kind}: {}", output.stderr);
    }
}
