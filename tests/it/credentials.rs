//! Credentials for Elasticsearch whose files change while the program runs: what is good is taken,
//! what is not changes nothing, and no event is lost.

use teleport_event_indexer::demo::elastic::Credentials;
use teleport_event_indexer::secret::Secret;

use crate::observer::{address, metric};
use crate::support::listener::{Authority, Listener};
use crate::support::program::Running;
use crate::support::rig::{Rig, event, midnight, rfc3339, wait_until_said};

const NAMES: &[&str] = &["127.0.0.1"];

/// A daemon that follows the log, and what it has said up to now.
struct Daemon<'a> {
    rig: &'a mut Rig,
    running: Running,
    n_events: u64,
    heard: usize,
}

impl Daemon<'_> {
    fn write(&self, name: &str, text: &str) {
        self.rig.indexer().write_private(name, text);
    }

    /// Asks for the files to be read, and gives what is said of it.
    fn read_again(&mut self, said: &str) -> String {
        self.running.hang_up();
        self.hears(said)
    }

    /// Waits for a new line with this in it.
    fn hears(&mut self, said: &str) -> String {
        let line = crate::support::wait_until(&format!("it says {said:?}"), || {
            let all = self.running.stderr();
            let new = all.get(self.heard..).unwrap_or_default();
            let line = new.lines().find(|line| line.contains(said));
            line.map(str::to_owned).ok_or(all)
        });
        self.heard = self.running.stderr().len();
        // Behind the time and the level.
        line.split_whitespace()
            .skip(2)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// One more event is stored.
    fn goes_on(&mut self) {
        self.event();
        self.rig.wait_until_stored(self.n_events);
    }

    fn event(&mut self) {
        let event = event(self.n_events, "user.login", midnight(1));
        self.n_events += 1;
        self.rig.append([event]);
    }

    /// It is told to stop, and has lost nothing; gives all that it has said.
    fn ends(mut self) -> String {
        self.running.terminate();
        let output = self.running.wait();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        self.rig.assert_complete();
        assert_eq!(self.rig.daemon().counts.dead_letters, 0);
        output.stderr
    }
}

fn password(password: &str) -> Option<Credentials> {
    Some(Credentials::Basic {
        user: "writer".to_owned(),
        password: Secret::new(password),
    })
}

#[test]
fn renewed_files_are_taken_over_and_others_change_nothing() {
    let top = format!("start-time = {:?}", rfc3339(midnight(2)));
    let mut rig = Rig::new(&top, "");
    rig.elasticsearch().require(password("one"));
    let (old, new) = (Authority::new(), Authority::new());
    let (clients, later_clients) = (Authority::new(), Authority::new());
    let listener = old.ends_tls(NAMES, Some(&clients));
    let listener = Listener::before(rig.elasticsearch_address(), listener);
    let (certificate, key) = clients.leaf(&["indexer"]);
    for (name, text) in [
        ("password", "one\n"),
        ("ca.pem", &*old.pem),
        ("client.crt", &*certificate.pem()),
        ("client.key", &*key.serialize_pem()),
    ] {
        rig.indexer().write_private(name, text);
    }
    let host = format!("https://{}", listener.address);
    let running = rig.spawn(&[
        "start",
        &format!("--elasticsearch-hosts={host}"),
        "--elasticsearch-user=writer",
        "--elasticsearch-password=file:password",
        "--elasticsearch-ca=ca.pem",
        "--elasticsearch-client-cert=client.crt",
        "--elasticsearch-client-key=client.key",
    ]);
    let mut daemon = Daemon {
        rig: &mut rig,
        running,
        n_events: 0,
        heard: 0,
    };
    const KEEPING: &str = "keeping the credentials";
    const RENEWED: &str = "credentials for Elasticsearch renewed";
    daemon.goes_on();

    // The password changes at the server, and what comes is held until the file has the new one,
    // which is found without a signal.
    daemon.rig.elasticsearch().require(password("two"));
    daemon.event();
    daemon.hears("refuses the credentials");
    daemon.write("password", "two\n");
    daemon.hears(RENEWED);
    daemon.goes_on();

    daemon.write("password", "");
    let said = daemon.read_again(KEEPING);
    insta::assert_snapshot!(said, @"keeping the credentials for Elasticsearch read before: no secret in the file password: its first line is empty");
    daemon.goes_on();
    daemon.write("password", "thr");
    let said = daemon.read_again(KEEPING);
    insta::assert_snapshot!(said, @"keeping the credentials for Elasticsearch read before: Elasticsearch refuses those in the files now: status 401, security_exception: unable to authenticate with provided credentials for REST request [/]");
    daemon.goes_on();
    daemon.write("password", "two\nand a second line");
    daemon.running.hang_up();
    daemon.goes_on();

    // The server's authority changes: first both are trusted, then the new one alone.
    daemon.write("ca.pem", "-----BEGIN CERTIFICATE-----\nMIIB");
    let said = daemon.read_again(KEEPING);
    insta::assert_snapshot!(said, @"keeping the credentials for Elasticsearch read before: the certificate authority ca.pem holds no usable PEM: could not find PEM certificate in input data");
    daemon.goes_on();
    daemon.write("ca.pem", &new.pem);
    let said = daemon.read_again(KEEPING);
    insta::assert_snapshot!(said.replace(&host, "HOST"), @"keeping the credentials for Elasticsearch read before: no answer from Elasticsearch at HOST/: its certificate comes from an authority that is not trusted here");
    daemon.goes_on();
    daemon.write("ca.pem", &format!("{}{}", old.pem, new.pem));
    daemon.read_again(RENEWED);
    daemon.goes_on();
    listener.conducts(new.ends_tls(NAMES, Some(&clients)));
    daemon.goes_on();
    daemon.write("ca.pem", &new.pem);
    daemon.read_again(RENEWED);
    daemon.goes_on();

    // A new client certificate: for a moment it stands beside the old key.
    let (certificate, key) = later_clients.leaf(&["indexer"]);
    daemon.write("client.crt", &certificate.pem());
    let said = daemon.read_again(KEEPING);
    insta::assert_snapshot!(said.replace(&host, "HOST"), @"keeping the credentials for Elasticsearch read before: the client certificate client.crt and the key client.key do not belong together");
    daemon.goes_on();
    listener.conducts(new.ends_tls(NAMES, Some(&later_clients)));
    daemon.event();
    daemon.hears("trying again");
    daemon.write("client.key", &key.serialize_pem());
    daemon.read_again(RENEWED);
    daemon.goes_on();

    let said = daemon.ends();
    for secret in ["one", "two", "thr"] {
        assert!(!said.contains(&format!("\"{secret}\"")));
    }
}

/// A daemon that waits for a server which refuses it takes the new key from the file.
#[test]
fn whoever_waits_at_the_start_reads_the_files_again() {
    let top = format!("start-time = {:?}", rfc3339(midnight(2)));
    let mut rig = Rig::new(&top, "");
    rig.append([event("a", "user.login", midnight(1))]);
    let key = |key: &str| {
        Some(Credentials::ApiKey {
            id: "id".to_owned(),
            key: Secret::new(key),
        })
    };
    rig.elasticsearch().require(key("new"));
    rig.indexer().write_private("key", "id:old\n");
    let args = ["start", "--elasticsearch-api-key=file:key"];
    let args = [&args[..], &["--exit-on-last-event"]].concat();
    let running = rig.spawn(&args);
    wait_until_said(&running, "refuses the credentials");
    rig.indexer().write_private("key", "id:new\n");
    let output = running.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    rig.assert_complete();
}

/// Whom a client certificate alone makes known (a PKI realm) has neither password nor key. The
/// stand-in has no realms: that it asks for a password is how a server without that realm answers.
#[test]
fn a_user_of_a_pki_realm_who_is_refused_waits_and_goes_on() {
    let top = format!("start-time = {:?}", rfc3339(midnight(2)));
    let mut rig = Rig::new(&top, "");
    let (ours, clients) = (Authority::new(), Authority::new());
    let conduct = ours.ends_tls(NAMES, Some(&clients));
    let listener = Listener::before(rig.elasticsearch_address(), conduct);
    let (certificate, key) = clients.leaf(&["indexer"]);
    rig.indexer().write("ca.pem", &ours.pem);
    rig.indexer().write("client.crt", &certificate.pem());
    let key = key.serialize_pem();
    rig.indexer().write_private("client.key", &key);
    let host = format!("https://{}", listener.address);
    let running = rig.spawn(&[
        "start",
        "--listen-addr=127.0.0.1:0",
        &format!("--elasticsearch-hosts={host}"),
        "--elasticsearch-ca=ca.pem",
        "--elasticsearch-client-cert=client.crt",
        "--elasticsearch-client-key=client.key",
    ]);
    let page = address(&running);
    let mut daemon = Daemon {
        rig: &mut rig,
        running,
        n_events: 0,
        heard: 0,
    };
    daemon.goes_on();
    let refused = "event_indexer_errors_total{stage=\"send\",reason=\"credentials\"}";
    assert_eq!(metric(&page, refused), Some(0.0));

    // The realm is gone, or does not trust the authority any more.
    daemon.rig.elasticsearch().require(password("one"));
    daemon.event();
    let said = daemon.hears("refuses the credentials");
    let (said, mend) = said.split_once(" documents=").unwrap_or((&said, ""));
    insta::assert_snapshot!(said.replace(&host, "HOST"), @"trying again for a minute, as this may pass: HOST/ refuses the credentials: status 401, security_exception: missing authentication credentials for REST request [/_bulk]");
    assert!(
        mend.contains("with client-cert alone, Elasticsearch needs a PKI realm"),
        "{mend}"
    );
    assert!(metric(&page, refused) >= Some(1.0));
    // A new certificate does not help there, and is not taken.
    let (certificate, new_key) = clients.leaf(&["indexer"]);
    daemon.write("client.crt", &certificate.pem());
    daemon.write("client.key", &new_key.serialize_pem());
    let said = daemon.read_again("keeping the credentials");
    insta::assert_snapshot!(said, @"keeping the credentials for Elasticsearch read before: Elasticsearch refuses those in the files now: status 401, security_exception: missing authentication credentials for REST request [/]");

    daemon.rig.elasticsearch().require(None);
    daemon.goes_on();
    daemon.read_again("credentials for Elasticsearch renewed");
    daemon.goes_on();
    daemon.ends();
}
