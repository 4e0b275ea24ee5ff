//! Hosts that accept whoever comes and never answer: the lead, and what is sent, go on by another.

use std::net::SocketAddr;

use super::{LEADS, START, is_led_by, pair, says, settings, takes_over, wait_for_all};
use crate::support::elasticsearch::{Elasticsearch, Options};
use crate::support::faketeleport::FakeTeleport;
use crate::support::listener::{Conduct, Listener};
use crate::support::wait_until;

const NAME: &str = "hanging";

#[test]
fn a_host_hangs_and_another_one_is_asked() {
    let Some(server) = Elasticsearch::start(Options::default()) else {
        return;
    };
    let Some(teleport) = FakeTeleport::start(&["--events", "2000", "--days", "2"]) else {
        return;
    };
    let [first, second] = pair(NAME, &teleport, &server, &settings());
    let target: SocketAddr = server
        .url()
        .replace("http://", "")
        .parse()
        .expect("an address");
    let hosts = [(); 2].map(|()| Listener::before(target, Conduct::Passes));
    let [one, other] = &hosts;
    let list = format!(
        "--elasticsearch-hosts=http://{},http://{}",
        one.address, other.address
    );
    // Longer than a lease: it is not the time limit of a request that saves it.
    let limit = "--elasticsearch-request-timeout=20s";
    let args = [&START[..], &[&list, limit]].concat();
    let mut a = first.spawn(&args);
    says(&mut a, LEADS, 1);
    let mut b = second.spawn(&args);
    says(&mut b, "standing by: process ", 1);
    wait_for_all(&first, &teleport);
    assert_eq!(other.n_accepted(), 0, "the first one is well");

    // In the middle of what is sent.
    one.conducts(Conduct::Hangs);
    teleport.append("n=200");
    wait_for_all(&first, &teleport);
    assert!(other.n_accepted() > 0);
    let led = || a.stderr().matches(LEADS).count() + b.stderr().matches(LEADS).count();
    assert!(led() <= 2, "it goes from hand to hand");

    // The way back, and the leader dies before anybody has found it.
    one.conducts(Conduct::Passes);
    other.conducts(Conduct::Hangs);
    teleport.append("n=200");
    let by_a = is_led_by(&first.status(), &a);
    let (mut dead, mut next) = if by_a { (a, b) } else { (b, a) };
    dead.kill();
    takes_over(&mut next, 1, "killed while its host hangs");
    wait_for_all(&first, &teleport);
    wait_until("the position is told", || {
        let status = first.status();
        is_led_by(&status, &next).then_some(()).ok_or(status)
    });
    next.terminate();
    let output = next.wait();
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(first.assert_complete(), 2400);
    let status = first.status();
    assert_eq!(status["gaps"]["count"], 0);
    assert_eq!(status["dead_letters"]["count"], 0);
}
