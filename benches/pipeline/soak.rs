//! A long run at full speed between the project's own stand-ins while both of them break all the
//! time: every event must be there once, and neither memory nor file descriptors may grow.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use teleport_event_indexer::checkpoint::{Checkpoint, DeadLetterFilter};
use teleport_event_indexer::demo::auth::{AuthControl, AuthOptions, Method, StandInAuth};
use teleport_event_indexer::demo::certs::{Cluster, IdentityOptions};
use teleport_event_indexer::demo::elastic::{
    Answer, ElasticsearchControl, ElasticsearchOptions, Refusal, StandInElasticsearch,
};
use teleport_event_indexer::demo::events::{self, Id};
use teleport_event_indexer::document::{Encoder, IndexPattern};
use tonic::Code;

use super::program;
use super::servers::{self, Api};

const CLUSTER: &str = "soak.example.com";

/// Events are added so many at a time, as soon as those before them have come.
const BURST: u64 = 20_000;

/// No more than these, as the stand-in Auth Service keeps them all in memory: after that there are
/// only faults.
const MOST: usize = 6_000_000;

/// One in so many is of a type that Elasticsearch takes in safe form only, and of one that it does
/// not take at all.
const ONE_IN: u64 = 5_000;

const REFUSED: &str = "soak.refused";
const REFUSED_FOR_GOOD: &str = "soak.refused_for_good";

/// Half of the time by either event API, each with a state of its own.
pub(crate) fn soak(minutes: u64) -> Result<()> {
    for api in Api::BOTH {
        let seconds = Duration::from_secs(minutes * 30);
        one(api, seconds).with_context(|| format!("by {}", api.name()))?;
    }
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let n = usize::try_from(self.below(choices.len() as u64)).expect("an index");
        choices[n]
    }
}

fn one(api: Api, duration: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let cluster = Cluster::new(CLUSTER)?;
    let database = folder.path().join("elasticsearch.sqlite");
    let (auth, elasticsearch) = runtime.block_on(async {
        let options = AuthOptions {
            export: api == Api::Export,
            chunk_events: 5_000,
            ..AuthOptions::default()
        };
        let auth = StandInAuth::start(&cluster, options).await?;
        let options = ElasticsearchOptions {
            database: Some(database.clone()),
            ..ElasticsearchOptions::default()
        };
        anyhow::Ok((auth, StandInElasticsearch::start(options).await?))
    })?;
    let template = json!({"index_patterns": ["audit-events-*"]}).to_string();
    servers::request(
        &elasticsearch.address().to_string(),
        "PUT",
        "/_index_template/audit-events",
        "",
        template.as_bytes(),
    )?;
    let identity = cluster.identity(&IdentityOptions::default())?;
    identity.write(&folder.path().join("identity"))?;
    let config = folder.path().join("config.toml");
    let text = format!(
        "storage = {:?}\nstart-time = \"{}\"\ntimeout = \"1s\"\n[teleport]\naddr = \"{}\"\n\
         identity = {:?}\n[forward.elasticsearch]\nhosts = [\"{}\"]\ngzip = false\n\
         request-timeout = \"2s\"\nbatch-documents = 2000\n",
        folder.path().join("state"),
        Utc::now().format("%FT%TZ"),
        auth.address(),
        folder.path().join("identity"),
        elasticsearch.url(),
    );
    program::write_secret(&config, &text)?;
    let log = File::create(folder.path().join("log"))?;
    let mut child = Command::new(program::program())
        .args(["start", "--config"])
        .arg(&config)
        .stderr(log)
        .spawn()?;
    let soaked = Soak {
        auth: auth.control().clone(),
        elasticsearch: elasticsearch.control().clone(),
        encoder: Encoder::new(&IndexPattern::default()),
        random: Random(1),
        expected: HashMap::new(),
        dead: BTreeSet::new(),
        n_faults: 0,
        next_fault: (10, 10),
        samples: Vec::new(),
    }
    .run(&mut child, duration, folder.path(), &database);
    // It may have ended by itself, which is an error of its own then.
    child.kill().ok();
    child.wait()?;
    if soaked.is_err() {
        let kept = folder.keep();
        println!("state, log and documents are left in {}", kept.display());
    }
    println!("{}: {}", api.name(), soaked?);
    Ok(())
}

/// What the process holds at a moment.
struct Sample {
    resident_bytes: u64,
    files: usize,
}

struct Soak {
    auth: AuthControl,
    elasticsearch: ElasticsearchControl,
    encoder: Encoder,
    random: Random,
    /// Where each event must be: a hash of index and id, and how often it was seen there.
    expected: HashMap<u64, bool>,
    /// Index and id of those which Elasticsearch never takes.
    dead: BTreeSet<(String, String)>,
    n_faults: u64,
    /// The number of calls to Teleport, and of requests to Elasticsearch, at which the next comes.
    next_fault: (u64, u64),
    samples: Vec<Sample>,
}

/// Two of ten million events have the same with a chance of one in 400,000.
fn hash(index: &str, id: &str) -> u64 {
    let text = format!("{index}/{id}");
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let (head, _) = digest.as_ref().split_at(8);
    u64::from_be_bytes(head.try_into().expect("eight bytes"))
}

impl Soak {
    fn run(
        mut self,
        child: &mut Child,
        duration: Duration,
        folder: &Path,
        database: &Path,
    ) -> Result<String> {
        self.refuse();
        let began = Instant::now();
        while began.elapsed() < duration {
            if self.is_indexed() && self.expected.len() < MOST {
                self.append();
            }
            self.break_something();
            thread::sleep(Duration::from_millis(50));
            self.sample(child.id())?;
            ensure!(child.try_wait()?.is_none(), "the program has ended");
        }
        // Then nothing breaks any more, and all that is under way arrives.
        self.elasticsearch.set_delay(Duration::ZERO);
        self.auth.set_delay(Duration::ZERO);
        let quiet = Instant::now();
        // Gaps that were told of count as well, so what is missing is waited for a little longer.
        let mut changed = (Instant::now(), 0);
        while !self.is_indexed() || changed.0.elapsed() < Duration::from_secs(10) {
            ensure!(child.try_wait()?.is_none(), "the program has ended");
            let count = self.elasticsearch.count();
            if count != changed.1 {
                changed = (Instant::now(), count);
            }
            if quiet.elapsed() > Duration::from_secs(600) {
                let (there, wanted) = (self.elasticsearch.count(), self.expected.len());
                bail!("only {there} of {wanted} documents have come");
            }
            thread::sleep(Duration::from_millis(100));
        }
        let seconds = began.elapsed().as_secs_f64();
        let status = Command::new("kill").arg(child.id().to_string()).status()?;
        ensure!(status.success(), "it cannot be asked to end");
        ensure!(child.wait()?.success(), "it has not ended well");
        let gaps = self.compare(folder, database)?;
        let flat = self.flat()?;
        let n = self.expected.len();
        Ok(format!(
            "{n} events in {seconds:.0} s, {} faults; each is there once, {} as dead letters, {gaps} \
             gaps; {} conflicts; {flat}",
            self.n_faults,
            self.dead.len(),
            self.elasticsearch.duplicates_refused(),
        ))
    }

    fn append(&mut self) {
        let from = self.expected.len() as u64;
        let now = Utc::now();
        let mut encoded = Vec::new();
        for n in from..from + BURST {
            let kind = match n % ONE_IN {
                0 => REFUSED,
                1 => REFUSED_FOR_GOOD,
                _ => "soak.event",
            };
            let event = json!({"event": kind, "code": "T0000I", "uid": n.to_string(), "ei": 0,
                "time": now.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
                "cluster_name": CLUSTER, "user": "alice", "addr.remote": "192.0.2.1:1234"});
            let event = events::encode(&event, Id::OfEvent);
            let mut document = Vec::new();
            let place = self.encoder.encode(&event, &mut document);
            let place = place.expect("it can be converted");
            let (index, id) = (place.index_name.to_string(), place.id.to_string());
            let twice = self.expected.insert(hash(&index, &id), false);
            assert_eq!(twice, None, "two events of one id");
            if kind == REFUSED_FOR_GOOD {
                self.dead.insert((index, id));
            }
            encoded.push(event);
        }
        self.auth.append(encoded);
    }

    /// Whether all has come that was added. Gaps that were told of come on top, dead letters do not.
    fn is_indexed(&self) -> bool {
        self.elasticsearch.count() + self.dead.len() as u64 >= self.expected.len() as u64
    }

    /// Some documents are refused for good; one in a hundred of the others is sent back once.
    fn refuse(&self) {
        let seen = Mutex::new(BTreeSet::new());
        self.elasticsearch.add_rule(move |operation| {
            let is_safe_form = operation.contains("event_indexer.raw");
            if operation.contains(REFUSED_FOR_GOOD) || operation.contains(REFUSED) && !is_safe_form
            {
                return Some(Refusal::mapping_failure());
            }
            let id = hash("", operation.id);
            let mut seen = seen.lock().expect("nobody panics while holding it");
            match id % 1000 {
                0..10 if seen.insert(id) => Some(Refusal::rejected_execution()),
                10 if seen.insert(id) => {
                    Some(Refusal::new(503, "unavailable_shards_exception", ""))
                }
                11 if id % 100_000 < 1000 && seen.insert(id) => {
                    Some(Refusal::flood_stage(operation.index))
                }
                _ => None,
            }
        });
    }

    /// One fault in about a dozen requests at either end, and now and then one that needs none: what
    /// is broken more often only waits.
    fn break_something(&mut self) {
        let status = |status: u16| Answer::Status {
            status,
            body: "{}".to_owned(),
            retry_after: None,
        };
        let (auth, elasticsearch) = (&self.auth, &self.elasticsearch);
        let methods = [Method::Search, Method::ReadChunk, Method::ListChunks];
        let random = &mut self.random;
        let calls: u64 = methods.iter().map(|method| auth.n_calls(*method)).sum();
        if calls >= self.next_fault.0 {
            self.next_fault.0 = calls + 4 + random.below(16);
            self.n_faults += 1;
            let n_events = usize::try_from(random.below(5_000)).expect("a small number");
            let method = random.pick(&methods);
            match random.below(5) {
                0 => auth.fail_next(method, 1, Code::Unavailable),
                1 => auth.fail_next(method, 1, Code::ResourceExhausted),
                2 => auth.fail_next(method, 1, Code::Unknown),
                3 => auth.break_next_stream(n_events, Code::Unavailable),
                _ => auth.break_next_stream(n_events, Code::Internal),
            }
        }
        let requests = elasticsearch.n_bulk_requests();
        if requests >= self.next_fault.1 {
            self.next_fault.1 = requests + 4 + random.below(16);
            self.n_faults += 1;
            let answer = match random.below(7) {
                0 => Answer::Drop,
                1 | 2 => Answer::StoreAndDrop,
                3 => Answer::Hang,
                4 => status(429),
                5 => status(503),
                _ => status(401),
            };
            elasticsearch.answer_next(1, answer);
        }
        let ms = Duration::from_millis(random.below(30));
        self.n_faults += 1;
        match random.below(200) {
            0 => auth.drop_connections(),
            1 => elasticsearch.drop_connections(),
            2 => auth.set_delay(ms),
            3 => elasticsearch.set_delay(ms),
            4 => auth.set_delay(Duration::ZERO),
            5 => elasticsearch.set_delay(Duration::ZERO),
            _ => self.n_faults -= 1,
        }
    }

    fn sample(&mut self, pid: u32) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        let kib: u64 = kib.context("the system tells of memory")?.parse()?;
        self.samples.push(Sample {
            resident_bytes: kib * 1024,
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        });
        Ok(())
    }

    /// Compares what is there with what was emitted; how many gaps were told of.
    fn compare(&mut self, folder: &Path, database: &Path) -> Result<u64> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(database, flags)?;
        let mut statement = connection.prepare(
            "SELECT i.name, d.id, instr(d.source, '\"event_indexer.gap\"') > 0
             FROM documents d JOIN indices i ON i.number = d.index_number",
        )?;
        let mut rows = statement.query([])?;
        let mut gaps = 0;
        while let Some(row) = rows.next()? {
            let (index, id, is_own): (String, String, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            if is_own {
                gaps += 1;
                continue;
            }
            match self.expected.get_mut(&hash(&index, &id)) {
                Some(seen @ false) => *seen = true,
                Some(true) => bail!("{index}/{id} is there twice"),
                None => bail!("{index}/{id} was never emitted"),
            }
        }
        let checkpoint = Checkpoint::open(&folder.join("state"))?;
        let letters = checkpoint.dead_letters(&DeadLetterFilter::default(), u32::MAX)?;
        let letters: BTreeSet<_> = letters
            .into_iter()
            .map(|letter| (letter.index_name, letter.document_id))
            .collect();
        ensure!(
            letters == self.dead,
            "the dead letters are others than those refused"
        );
        let missing = self.expected.values().filter(|seen| !**seen).count();
        ensure!(
            missing == self.dead.len(),
            "{missing} events are missing, and {} are dead letters",
            self.dead.len()
        );
        Ok(gaps)
    }

    /// The first fifth is warming up; in what follows the last third may not need more than the
    /// first.
    fn flat(&self) -> Result<String> {
        let (_, warm) = self.samples.split_at(self.samples.len() / 5);
        let (first, rest) = warm.split_at(warm.len() / 3);
        let last = &rest[rest.len() - first.len()..];
        let middle = |samples: &[Sample], of: fn(&Sample) -> u64| {
            let mut values: Vec<u64> = samples.iter().map(of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        let bytes = [first, last].map(|part| middle(part, |sample| sample.resident_bytes));
        let files = [first, last].map(|part| middle(part, |sample| sample.files as u64));
        let peak_files = self
            .samples
            .iter()
            .map(|s| s.files)
            .max()
            .unwrap_or_default();
        let peak = self.samples.iter().map(|s| s.resident_bytes).max();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let said = format!(
            "memory {:.1} MiB in the first and {:.1} MiB in the last third, {:.1} MiB at most; file \
             descriptors {} and {}, {peak_files} at most",
            mib(bytes[0]),
            mib(bytes[1]),
            mib(peak.unwrap_or_default()),
            files[0],
            files[1],
        );
        ensure!(bytes[1] * 10 <= bytes[0] * 11, "memory grows: {said}");
        ensure!(
            files[1] <= files[0] + 2 && peak_files <= 64,
            "file descriptors grow: {said}"
        );
        Ok(said)
    }
}
