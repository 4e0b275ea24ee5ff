//! A relay of TCP connections: adds a delay to every round trip, half of it on the way there and
//! half on the way back, and notes when the first bulk request was answered. It limits no rate.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A relay on a free port, for as long as the process runs.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What has passed.
#[derive(Default)]
struct Seen {
    has_bulk_request: bool,
    answered: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

impl Relay {
    pub(crate) fn start(target: &str, delay: Duration) -> io::Result<Self> {
        let target = target
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other(format!("{target} is no address")))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = seen.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else {
                    continue;
                };
                one_way(&near, &far, delay / 2, Way::There, shared.clone());
                one_way(&far, &near, delay / 2, Way::Back, shared.clone());
            }
        });
        Ok(Self { address, seen })
    }

    /// When the first answer to a bulk request began to come back.
    pub(crate) fn first_bulk_answer(&self) -> Option<Instant> {
        self.seen.lock().expect("no holder panics").answered
    }
}

fn one_way(from: &TcpStream, to: &TcpStream, delay: Duration, way: Way, seen: Arc<Mutex<Seen>>) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    to.set_nodelay(true).ok();
    // 64 MiB under way at most: far more than either end lets be unanswered.
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n) = from.read(&mut buffer) {
            look(&buffer[..n], way, &seen);
            let piece = (Instant::now() + delay, buffer[..n].to_vec());
            if n == 0 || sender.send(piece).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                return;
            }
        }
        to.shutdown(Shutdown::Write).ok();
    });
}

fn look(piece: &[u8], way: Way, seen: &Mutex<Seen>) {
    let mut seen = seen.lock().expect("no holder panics");
    match way {
        // A client sends its head in a piece of its own or at a piece's beginning.
        Way::There => seen.has_bulk_request |= piece.starts_with(b"POST /_bulk"),
        Way::Back if seen.has_bulk_request && !piece.is_empty() => {
            seen.answered.get_or_insert_with(Instant::now);
        }
        Way::Back => {}
    }
}
