//! Sends bulk requests that were prepared beforehand, as fast as Elasticsearch takes them.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::servers::Elasticsearch;
use super::sink;

/// Sends all bodies over so many connections; how long it took.
pub(crate) fn replay(
    server: &Elasticsearch,
    bodies: &[Vec<u8>],
    connections: usize,
) -> Result<Duration> {
    let waiting = Mutex::new(bodies.iter());
    let began = Instant::now();
    thread::scope(|scope| {
        let senders: Vec<_> = (0..connections)
            .map(|_| scope.spawn(|| send_all(server.address(), &waiting)))
            .collect();
        senders
            .into_iter()
            .try_for_each(|sender| sender.join().expect("a sender does not panic"))
    })?;
    Ok(began.elapsed())
}

fn send_all(address: &str, waiting: &Mutex<std::slice::Iter<'_, Vec<u8>>>) -> Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let authorization = Elasticsearch::authorization();
    loop {
        let Some(body) = waiting.lock().expect("no holder panics").next() else {
            return Ok(());
        };
        write!(
            connection,
            "POST /_bulk?filter_path=items.*.status,items.*.error.type,items.*.error.reason \
             HTTP/1.1\r\nhost: {address}\r\n{authorization}content-type: application/x-ndjson\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        )?;
        connection.write_all(body)?;
        let (status, length) = sink::head(&mut reader)?.context("no answer")?;
        let answer = sink::body(&mut reader, length)?;
        ensure!(status.contains(" 200 "), "Elasticsearch says {status}");
        // A document that was refused would be one that cost nothing.
        ensure!(
            memchr::memmem::find(&answer, b"\"error\"").is_none(),
            "Elasticsearch has refused a document"
        );
    }
}

/// The same requests with each document's `uid` as its id.
///
/// # Errors
/// If a document has no `uid`.
pub(crate) fn with_uids(bodies: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    rewritten(bodies, |action, source, out| {
        let uid = uid(source).context("a document has no uid")?;
        write_action(action, uid, out)?;
        out.extend_from_slice(source);
        Ok(())
    })
}

/// Writes each operation anew: `rewrite` gets its two lines, without their ends.
pub(crate) fn rewritten(
    bodies: &[Vec<u8>],
    mut rewrite: impl FnMut(&[u8], &[u8], &mut Vec<u8>) -> Result<()>,
) -> Result<Vec<Vec<u8>>> {
    bodies
        .iter()
        .map(|body| {
            let mut out = Vec::with_capacity(body.len() + body.len() / 8);
            let mut lines = body.split(|byte| *byte == b'\n');
            while let (Some(action), Some(source)) = (lines.next(), lines.next()) {
                rewrite(action, source, &mut out)?;
                out.push(b'\n');
            }
            Ok(out)
        })
        .collect()
}

/// The action line with another id, and its end.
pub(crate) fn write_action(action: &[u8], id: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    const ID: &[u8] = b"\"_id\":\"";
    let at = memchr::memmem::find(action, ID)
        .ok_or_else(|| io::Error::other("an action line has no id"))?;
    out.extend_from_slice(&action[..at + ID.len()]);
    out.extend_from_slice(id);
    out.extend_from_slice(b"\"}}\n");
    Ok(())
}

fn uid(source: &[u8]) -> Option<&[u8]> {
    const UID: &[u8] = b"\"uid\":\"";
    let start = memchr::memmem::find(source, UID)? + UID.len();
    let length = memchr::memchr(b'"', &source[start..])?;
    Some(&source[start..start + length])
}
