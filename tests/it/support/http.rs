//! A minimal HTTP/1.1 client for the servers on loopback: one request per connection, no TLS. It
//! shares nothing with the HTTP client of the program under test.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// One answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// As received: `name: value` lines.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    /// The body as JSON; text that is no JSON becomes a string.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| Value::String(self.text().trim_end().to_owned()))
    }

    /// The answer itself, if its status is 2xx.
    ///
    /// # Panics
    /// If it is not, with all that was answered.
    pub(crate) fn success(self) -> Self {
        let good = (200..300).contains(&self.status);
        assert!(
            good,
            "{}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}

/// Sends a request to `address` (host:port). `headers` are whole lines without their ends.
///
/// # Errors
/// If there is no connection, or it broke before all of the answer came.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("host:")) {
        head += &format!("host: {address}\r\n");
    }
    for header in headers {
        head += header;
        head += "\r\n";
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    head += "\r\n";
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    parse(&received).ok_or_else(|| io::Error::other("the answer is not whole"))
}

/// Takes a whole answer apart; `None` if something of it is missing.
fn parse(received: &[u8]) -> Option<Answer> {
    let end = memchr::memmem::find(received, b"\r\n\r\n")?;
    let (head, body) = (received.get(..end)?, received.get(end + 4..)?);
    let (line, head) = str::from_utf8(head).ok()?.split_once("\r\n")?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    let body = if header("transfer-encoding") == Some("chunked") {
        unchunk(body)?
    } else if let Some(length) = header("content-length") {
        body.get(..length.parse().ok()?)?.to_vec()
    } else {
        body.to_vec()
    };
    let head = head.to_owned();
    Some(Answer { status, head, body })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = memchr::memmem::find(rest, b"\r\n")?;
        let size = str::from_utf8(rest.get(..line)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
        rest = rest.get(line + 2 + size + 2..)?;
    }
}

#[test]
fn an_answer_is_taken_apart_and_a_cut_one_is_refused() {
    let chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x=y\r\n\":1}\r\n0\r\n\r\n";
    let answer = parse(chunked).unwrap();
    assert_eq!(answer.status, 201);
    assert_eq!(answer.json(), serde_json::json!({"a": 1}));
    assert!(parse(&chunked[..chunked.len() - 8]).is_none());

    let sized = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone";
    assert_eq!(parse(sized).unwrap().text(), "gone");
    assert!(parse(&sized[..sized.len() - 1]).is_none());
}
