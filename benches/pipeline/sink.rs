//! A stand-in for Elasticsearch that answers every bulk request at once and keeps nothing, or keeps
//! the bodies for a replay.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What has come in.
#[derive(Default)]
pub(crate) struct Received {
    /// Operations of bulk requests.
    pub(crate) operations: u64,
    /// Bytes of their bodies.
    pub(crate) bytes: u64,
    /// The bodies, where they are kept.
    pub(crate) bodies: Vec<Vec<u8>>,
}

/// A server on a free port, for as long as the process runs.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Received>>,
}

impl Sink {
    pub(crate) fn start(keeps: bool) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Received>>::default();
        let shared = received.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = shared.clone();
                // An error is a client that has gone.
                thread::spawn(move || serve(connection, &shared, keeps).ok());
            }
        });
        Ok(Self { address, received })
    }

    /// Gives what has come since the last time.
    pub(crate) fn take(&self) -> Received {
        std::mem::take(&mut self.received.lock().expect("no holder panics"))
    }
}

/// The items of an answer are made once, for the largest request that any batch limit allows.
const ITEM: &str = r#"{"create":{"status":201}}"#;

fn serve(connection: TcpStream, received: &Mutex<Received>, keeps: bool) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, connection.try_clone()?);
    let mut writer = connection;
    let mut body = Vec::new();
    let mut answer = Vec::new();
    loop {
        let Some((request, length)) = head(&mut reader)? else {
            return Ok(());
        };
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        answer.clear();
        if request.starts_with("POST /_bulk") {
            let operations = body.iter().filter(|byte| **byte == b'\n').count() / 2;
            answer.extend_from_slice(b"{\"items\":[");
            for n in 0..operations {
                if n > 0 {
                    answer.push(b',');
                }
                answer.extend_from_slice(ITEM.as_bytes());
            }
            answer.extend_from_slice(b"]}");
            let mut received = received.lock().expect("no holder panics");
            received.operations += operations as u64;
            received.bytes += length as u64;
            if keeps {
                received.bodies.push(body.clone());
            }
        } else if request.starts_with("GET / ") {
            answer.extend_from_slice(br#"{"version":{"number":"9.5.3"}}"#);
        } else {
            answer.extend_from_slice(b"{}");
        }
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nx-elastic-product: Elasticsearch\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        )?;
        writer.write_all(&answer)?;
    }
}

/// The first line of a request or an answer and the length of its body, of which there is one in
/// all that is spoken here but for an answer in chunks: `usize::MAX`. `None` at the connection's
/// end.
pub(crate) fn head(reader: &mut impl BufRead) -> io::Result<Option<(String, usize)>> {
    let mut request = String::new();
    if reader.read_line(&mut request)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line == "transfer-encoding: chunked" {
            length = usize::MAX;
        }
        if line.is_empty() {
            return Ok(Some((request, length)));
        }
    }
}

/// Reads the body of an answer whose [`head`] has been read.
pub(crate) fn body(reader: &mut impl BufRead, length: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if length < usize::MAX {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(body);
        }
    }
}
