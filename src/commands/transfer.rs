//! What `start`, `backfill` and `demo` share: both ends made ready, and the pipeline between them.

use std::error::Error;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::checkpoint::{Checkpoint, LeftOut, Run};
use crate::commands::Failure;
use crate::commands::dry_run::{DryRun, End};
use crate::commands::mend::mend;
use crate::commands::room::Room;
use crate::config::{Config, ElasticsearchConfig};
use crate::document::Encoder;
use crate::elastic::bulk::Bulk;
use crate::elastic::client::{self as elastic, Body, Method, ServerError};
use crate::leader::lease::{Lease, Leased};
use crate::output::Chain;
use crate::pipeline::batch::BatchLimits;
use crate::pipeline::retry::Backoff;
use crate::pipeline::{Pipeline, Settings, Sink, Summary, unless_stopped};
use crate::shutdown::Reload;
use crate::telemetry::{self, Life, Reason, Stats};
use crate::teleport::audit_log::{AuditLog, Reading, Sent};
use crate::teleport::client::{self as teleport, CallError, Remedy};
use crate::teleport::part::Part;
use crate::teleport::readers::Readers;

/// What to do when an end cannot be reached at the start.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience<'a> {
    /// Try for ever, as a daemon may start before the servers do, and say here how it goes.
    Endless(&'a telemetry::End),
    /// Ask again for some seconds where it answers that it cannot yet, and then say so and end: for
    /// what is done soon.
    Seconds,
    /// Say so and end.
    None,
}

/// Memory for events in flight beyond what full requests need: what is being read and converted.
const READ_AHEAD_BYTES: usize = 8 << 20;

/// Reads the credentials and proves the connection to Teleport. `None`: told to stop.
pub(super) async fn reach_teleport(
    config: &Config,
    patience: Patience<'_>,
    stop: &CancellationToken,
) -> Result<Option<(teleport::Client, teleport::Server)>, Failure> {
    let teleport = config.teleport.as_ref().expect("the command needs it");
    let requests = config.limits.teleport_requests_per_second;
    let client = teleport::Client::new(teleport, requests)
        .map_err(|unusable| Failure::Unusable(unusable.into()))?;
    let passes = |failed: &CallError| failed.remedy() == Remedy::Retry;
    let server = reach(patience, stop, async || client.ping().await, passes).await?;
    let Some(server) = server else {
        return Ok(None);
    };
    let route = client.route().await;
    info!(
        cluster = server.cluster,
        version = server.version,
        "connected to Teleport at {}{}",
        teleport.addr,
        route.map_or_else(String::new, |route| format!(", {route}"))
    );
    Ok(Some((client, server)))
}

/// Proves the connection to Elasticsearch. `None`: told to stop.
pub(super) async fn reach_elasticsearch(
    config: &ElasticsearchConfig,
    patience: Patience<'_>,
    stop: &CancellationToken,
) -> Result<Option<(elastic::Client, elastic::Server)>, Failure> {
    let client =
        elastic::Client::new(config).map_err(|unusable| Failure::Unusable(unusable.into()))?;
    let client = match patience {
        Patience::Seconds => client.patient(),
        Patience::Endless(_) | Patience::None => client,
    };
    // After a restart a server may refuse good credentials until it has loaded its own security
    // index, so a daemon holds then as well.
    let passes = |failed: &ServerError| {
        failed.is_transient() || matches!(failed, ServerError::Unauthorized { .. })
    };
    let attempt = async || {
        if let Patience::Endless(_) = patience {
            client.look_again().await;
        }
        client.server().await
    };
    let server = reach(patience, stop, attempt, passes).await?;
    Ok(server.map(|server| {
        let version = server.version.map(|_| server.to_string());
        info!(
            version,
            "connected to Elasticsearch at {}",
            client.address()
        );
        (client, server)
    }))
}

/// Makes attempts until one succeeds, or fails in a way that will not pass. `None`: told to stop.
pub(super) async fn reach<T, E: Error + Send + Sync + 'static>(
    patience: Patience<'_>,
    stop: &CancellationToken,
    attempt: impl AsyncFn() -> Result<T, E>,
    passes: impl Fn(&E) -> bool,
) -> Result<Option<T>, Failure> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        let failed = match unless_stopped(stop, attempt()).await {
            None => return Ok(None),
            Some(Ok(reached)) => {
                if let Patience::Endless(end) = patience {
                    end.answered();
                }
                return Ok(Some(reached));
            }
            Some(Err(failed)) => failed,
        };
        let end = match patience {
            Patience::Endless(end) if passes(&failed) => end,
            _ => return Err(Failure::Failed(failed.into())),
        };
        end.failed(Reason::Unreachable, &Chain(&failed).to_string());
        let pause = backoff.failed().wait;
        warn!(
            ?pause,
            mend = mend(&failed),
            "trying again: {}",
            Chain(&failed)
        );
        if unless_stopped(stop, sleep(pause)).await.is_none() {
            return Ok(None);
        }
    }
}

/// Refuses to write where the index template is known to be missing: documents would go into
/// indices with guessed mappings, which later refuse what Teleport really sends.
pub(super) async fn demand_template(
    client: &elastic::Client,
    config: &ElasticsearchConfig,
) -> Result<(), Failure> {
    let template = &config.install.template;
    let path = format!("/_index_template/{template}?filter_path=index_templates.name");
    match client.request(Method::Get, &path, Body::Empty).await {
        Ok(answer) if answer.status == 404 => Err(Failure::Failed(anyhow::anyhow!(
            "the index template `{template}` is not in Elasticsearch at {}: run \
             `teleport-event-indexer install` first",
            client.address()
        ))),
        // Not allowed to look, or no answer just now: then it shows when documents are sent.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The pipeline's settings.
fn settings(config: &Config, room: &Room) -> Settings {
    let batch = match &config.elasticsearch {
        Some(elasticsearch) => BatchLimits {
            bytes: elasticsearch.batch_bytes,
            documents: elasticsearch.batch_documents,
            age: elasticsearch.batch_age,
        },
        // A dry run without an Elasticsearch section.
        None => BatchLimits {
            bytes: 1 << 20,
            documents: 10_000,
            age: Duration::from_millis(200),
        },
    };
    let in_flight = config.elasticsearch.as_ref().map_or(1, |e| e.in_flight);
    let in_flight_bytes = batch.bytes.saturating_mul(in_flight + 2) + READ_AHEAD_BYTES;
    Settings {
        batch,
        in_flight,
        in_flight_bytes: room.part_of(in_flight_bytes, batch.bytes),
        grace_period: config.grace_period,
        dead_letter_bytes: config.dead_letter_bytes,
        blocked_bytes: config.blocked_bytes,
    }
}

/// What to read: the part of it that the configuration tells.
pub(super) fn reading(config: &Config, from_ms: i64) -> Reading {
    Reading {
        from_ms,
        kept_from_ms: None,
        to_ms: None,
        filter: config.filter.clone(),
        types: config.filter.for_server(),
        namespace: config.namespace.clone(),
        part: Part::WHOLE,
        page_limit: config.page_limit,
        window: config.window_size,
        poll_interval: config.poll_interval,
        readers: Readers::at_most(config.concurrency),
        exit_on_last_event: false,
        events_per_second: config.limits.events_per_second,
        sessions: config.sessions.clone(),
        // A daemon's matter alone.
        lock: None,
        sent: Sent::default(),
    }
}

/// A run with all that it needs.
pub(super) struct Transfer {
    pub config: Config,
    pub client: teleport::Client,
    pub checkpoint: Arc<Checkpoint>,
    pub run: Run,
    pub reading: Reading,
    pub stats: Arc<Stats>,
    /// What asks for the credentials to be read again; for a daemon.
    pub reload: Option<Reload>,
    /// Until when it may do anything; `None`: there is no other that would.
    pub lease: Option<Lease>,
}

impl Transfer {
    /// Reads and writes nothing from before `first_ms`: what the run has not come to is left out,
    /// and written down as that.
    pub(super) fn leave_out_before(&mut self, first_ms: i64) -> Result<(), Failure> {
        let LeftOut {
            first_ms,
            recordings,
        } = self.checkpoint.leave_out(self.run.id, first_ms)?;
        if recordings > 0 {
            warn!(
                recordings,
                "left out, as their uploads are too old for the lifecycle policy: session \
                 recordings that were still to be read"
            );
        }
        self.run = self.checkpoint.run(self.run.id)?;
        self.reading.from_ms = self.reading.from_ms.max(first_ms);
        self.reading.kept_from_ms = Some(first_ms);
        Ok(())
    }

    /// Runs into Elasticsearch.
    pub(super) async fn into_elasticsearch(
        self,
        client: elastic::Client,
        stop: CancellationToken,
    ) -> Result<Summary, Failure> {
        let room = Room::for_one(&self.config);
        Box::pin(self.into_sink(room, client, |bulk| bulk, stop)).await
    }

    /// Runs into what is made of the way into Elasticsearch, beside others.
    pub(super) async fn into_sink<K: Sink>(
        self,
        room: Room,
        client: elastic::Client,
        sink: impl FnOnce(Bulk) -> K,
        stop: CancellationToken,
    ) -> Result<Summary, Failure> {
        let elasticsearch = self
            .config
            .elasticsearch
            .as_ref()
            .expect("the command needs it");
        let gzip = elasticsearch.gzip.unwrap_or(!client.is_local());
        let fresh = client.clone();
        let asked = asked(self.reload.clone());
        let stats = self.stats.clone();
        let sink = sink(Bulk::new(client, gzip, room.bytes()).one_of(room.requests()));
        let work = Box::pin(self.through_within(&room, sink, stop));
        let tell = move |life: Option<Life>| {
            let (start, end) = (&stats.credentials_start_ms, &stats.credentials_end_ms);
            let life = life.map(|life| [life.start, life.end].map(|time| time.timestamp_millis()));
            let [start_ms, end_ms] = life.unwrap_or_default();
            start.store(start_ms, Ordering::Relaxed);
            end.store(end_ms, Ordering::Relaxed);
        };
        let fresh = Box::pin(async move { fresh.keep_fresh(asked, tell).await });
        beside(work, fresh).await
    }

    /// Runs onto stdout. `None`: whoever read it has enough.
    pub(super) async fn onto_stdout(
        self,
        stop: CancellationToken,
    ) -> Result<Option<Summary>, Failure> {
        let end = Arc::new(Mutex::new(None));
        let sink = DryRun {
            stop: stop.clone(),
            end: end.clone(),
        };
        let summary = self.through(sink, stop).await?;
        let end = end.lock().unwrap_or_else(PoisonError::into_inner).take();
        match end {
            None => Ok(Some(summary)),
            Some(End::ReaderGone) => Ok(None),
            Some(End::Failed(failed)) => Err(failed.into()),
        }
    }

    pub(super) async fn through(
        self,
        sink: impl Sink,
        stop: CancellationToken,
    ) -> Result<Summary, Failure> {
        let room = Room::for_one(&self.config);
        self.through_within(&room, sink, stop).await
    }

    async fn through_within(
        self,
        room: &Room,
        sink: impl Sink,
        stop: CancellationToken,
    ) -> Result<Summary, Failure> {
        let form = self.config.elasticsearch.as_ref();
        let form = form.map(|e| (e.index.clone(), e.schema));
        let (pattern, schema) = form.unwrap_or_default();
        let (client, stats) = (self.client.clone(), self.stats.clone());
        let asked = asked(self.reload);
        let mut reading = self.reading;
        reading.readers = reading.readers.sharing(room.readers());
        let source = AuditLog {
            client: self.client,
            checkpoint: self.checkpoint.clone(),
            run: self.run.id,
            reading,
            stats: self.stats.clone(),
        };
        let pipeline = Pipeline {
            sink,
            checkpoint: self.checkpoint,
            run: self.run.id,
            cluster: self.run.cluster,
            encoder: Encoder::new(&pattern).with_schema(schema),
            settings: settings(&self.config, room),
            stats: self.stats,
        };
        let run = async {
            match self.lease {
                Some(lease) => pipeline.run(Leased { source, lease }, stop).await,
                None => pipeline.run(source, stop).await,
            }
        };
        let run = Box::pin(run);
        let fresh = Box::pin(client.keep_fresh(asked, &stats));
        let ended = beside(run, fresh).await;
        let ended = ended.context("the run has ended")?;
        Ok(ended)
    }
}

/// Waits until somebody asks for the credentials to be read again.
fn asked(mut reload: Option<Reload>) -> impl AsyncFnMut() {
    async move || match &mut reload {
        Some(reload) => reload.asked().await,
        None => std::future::pending().await,
    }
}

/// Runs something beside a future until that ends.
pub(super) async fn beside<T>(
    work: impl Future<Output = T>,
    company: impl Future<Output = ()>,
) -> T {
    let work = std::pin::pin!(work);
    let company = std::pin::pin!(async {
        company.await;
        std::future::pending::<()>().await;
    });
    tokio::select! {
        biased;
        done = work => done,
        // Company only watches; it may be dropped at any point.
        () = company => unreachable!("company never ends"),
    }
}
