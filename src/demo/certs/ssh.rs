//! The SSH lines of an identity file: a true certificate and its authority, so that a reader that
//! parses and checks them is content. Nobody here speaks SSH; the stand-in is reached by TLS alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};

use crate::demo::certs::IdentityOptions;

/// `TYPE-cert-v01@openssh.com BASE64`, a user certificate over `key`.
pub(super) fn certificate_line(
    key: &KeyPair,
    options: &IdentityOptions,
    authority: &KeyPair,
) -> String {
    let kind = format!("{}-cert-v01@openssh.com", key_kind(key));
    let mut blob = Vec::new();
    put(&mut blob, kind.as_bytes());
    put(&mut blob, &[0x5a; 32]); // nonce
    put_key_fields(&mut blob, key);
    blob.extend_from_slice(&1_u64.to_be_bytes()); // serial number
    blob.extend_from_slice(&1_u32.to_be_bytes()); // a user's certificate
    put(&mut blob, options.user.as_bytes());
    put(&mut blob, &list(&["-teleport-internal-join"]));
    for time in [options.not_before, options.not_after] {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        blob.extend_from_slice(&seconds.to_be_bytes());
    }
    put(&mut blob, &[]); // critical options
    put(&mut blob, &list(&["permit-pty", ""]));
    put(&mut blob, &[]); // reserved
    put(&mut blob, &key_blob(authority));
    let mut signature = Vec::new();
    put(&mut signature, key_kind(authority).as_bytes());
    let signed = authority
        .sign(&blob)
        .expect("an Ed25519 key signs anything");
    put(&mut signature, &signed);
    put(&mut blob, &signature);
    format!("{kind} {}", STANDARD.encode(blob))
}

/// `@cert-authority HOSTS TYPE BASE64 type=host`.
pub(super) fn authority_line(cluster: &str, authority: &KeyPair) -> String {
    format!(
        "@cert-authority localhost,127.0.0.1,{cluster},*.{cluster} {} {} type=host",
        key_kind(authority),
        STANDARD.encode(key_blob(authority))
    )
}

fn key_kind(key: &KeyPair) -> &'static str {
    if key.is_compatible(&PKCS_ED25519) {
        "ssh-ed25519"
    } else {
        "ecdsa-sha2-nistp256"
    }
}

fn key_blob(key: &KeyPair) -> Vec<u8> {
    let mut blob = Vec::new();
    put(&mut blob, key_kind(key).as_bytes());
    put_key_fields(&mut blob, key);
    blob
}

fn put_key_fields(blob: &mut Vec<u8>, key: &KeyPair) {
    if !key.is_compatible(&PKCS_ED25519) {
        put(blob, b"nistp256");
    }
    put(blob, key.public_key_raw());
}

fn list(texts: &[&str]) -> Vec<u8> {
    let mut blob = Vec::new();
    for text in texts {
        put(&mut blob, text.as_bytes());
    }
    blob
}

/// A string of the SSH wire format: its length as four bytes, then its bytes.
fn put(blob: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys and names are short");
    blob.extend_from_slice(&length.to_be_bytes());
    blob.extend_from_slice(bytes);
}
