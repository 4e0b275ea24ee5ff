//! The status page over TLS: whom its certificate convinces, and that a renewed one is taken over.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::observer::address;
use crate::support::listener::Authority;
use crate::support::rig::{Rig, midnight, rfc3339, wait_until_said};
use crate::support::wait_until;

/// The status line with which the page answers whoever trusts this authority alone.
fn asked(rig: &Rig, address: &str, trusted: &Authority) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der()).expect("it is an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await?;
        let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    rig.block_on(exchange).map_err(|failed| failed.to_string())
}

#[test]
fn a_renewed_certificate_is_taken_over_and_half_of_one_is_not() {
    let rig = Rig::new(&format!("start-time = {:?}", rfc3339(midnight(1))), "");
    let [first, second] = [Authority::new(), Authority::new()];
    let write = |authority: &Authority, with_key: bool| {
        let (certificate, key) = authority.leaf(&["localhost"]);
        rig.indexer().write("page.crt", &certificate.pem());
        if with_key {
            rig.indexer()
                .write_private("page.key", &key.serialize_pem());
        }
    };
    write(&first, true);
    rig.indexer().write_private("token", "s3cret\n");
    let running = rig.spawn(&[
        "start",
        "--listen-addr=0.0.0.0:0",
        "--listen-token=file:token",
        "--listen-cert=page.crt",
        "--listen-key=page.key",
    ]);
    let address = address(&running).replace("0.0.0.0", "127.0.0.1");
    assert_eq!(asked(&rig, &address, &first), Ok("HTTP/1.1 200 OK".into()));
    let refused = asked(&rig, &address, &second);
    assert!(refused.is_err(), "{refused:?}");

    // What is being written is no certificate yet, and the old one serves on.
    write(&second, false);
    assert_eq!(asked(&rig, &address, &first), Ok("HTTP/1.1 200 OK".into()));
    wait_until_said(
        &running,
        "WARN keeping the certificate of the status page: ",
    );

    write(&second, true);
    wait_until("the new certificate is shown", || {
        asked(&rig, &address, &second)
    });
    wait_until_said(&running, "certificate of the status page renewed");
    assert!(asked(&rig, &address, &first).is_err());
}
