//! Adds fields of the Elastic Common Schema (ECS) behind an event's own members, which stay as they
//! are; so does the event's id, which is made before.
//!
//! Teleport has the texts `user`, `event` and `error` where ECS has objects of these names. Written
//! with dotted keys (`"user.name"`) under a mapping of root `subobjects: false` both have room.
//! Which member becomes what is said in [`Ecs::write`], what each event type is about in [`rules`].
//! An ECS field that the event has a member of the same name for is left out, since a key may not
//! come twice, and so is a text longer than what would be indexed.
//!
//! As in the rest of the way from wire to text there is no tree and, once the keys and types are
//! known, no allocation: of the event's members only those of [`SOURCES`] are looked at again, by
//! their places in the table of known keys.

mod address;
mod fields;
mod names;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use chrono::{DateTime, Datelike, Timelike};

use self::fields::Fields;
use self::names::{SOURCES, Source, TARGETS, Target};
use self::rules::Rule;
use super::json::{Found, Kind, Transcoder};
use super::text::write_number;

/// Of an event type so many are known at most, so that made-up ones do not fill memory.
const TYPES_MAX: usize = 512;

/// The names of all of them, the sources first.
const NAMES: &[&[&str]] = &[SOURCES, TARGETS];

/// Appends ECS fields to documents.
pub(super) struct Ecs {
    found: Found,
    /// What the event types met are about.
    rules: HashMap<Box<[u8]>, Rule>,
}

impl Default for Ecs {
    fn default() -> Self {
        Self {
            found: Found::of(NAMES),
            rules: HashMap::new(),
        }
    }
}

impl Ecs {
    /// Looks for what it needs of the event that was read, which must not be written yet.
    pub(super) fn read(&mut self, transcoder: &Transcoder, body: &[u8]) {
        transcoder.find(body, &mut self.found);
    }

    /// Puts the fields behind the last member of the object that `out` ends in, which begins at
    /// `start`.
    pub(super) fn write(&mut self, body: &[u8], time_ms: i64, start: usize, out: &mut Vec<u8>) {
        out.pop();
        let end = out.len();
        let mut fields = Fields {
            body,
            found: &self.found,
            out,
        };
        let action = fields.text(Source::Event).unwrap_or_default();
        let rule = rule_of(&mut self.rules, action);
        fields.of_the_event(time_ms, rule);
        fields.of_endpoints();
        fields.of_the_process(action);
        fields.of_the_rest(action);
        // An event without members has no comma to go on with.
        if end == start + 1 && out.len() > end {
            out.remove(end);
        }
        out.push(b'}');
    }
}

fn rule_of(rules: &mut HashMap<Box<[u8]>, Rule>, event_type: &[u8]) -> Rule {
    if let Some(rule) = rules.get(event_type) {
        return *rule;
    }
    let rule = Rule::of(event_type);
    if rules.len() < TYPES_MAX && event_type.len() <= 64 {
        rules.insert(event_type.into(), rule);
    }
    rule
}

/// Appends `,"@timestamp":"…"` to the object that `out` ends in.
pub(super) fn write_timestamp(time_ms: i64, out: &mut Vec<u8>) {
    out.pop();
    out.extend_from_slice(b",\"@timestamp\":");
    write_time(time_ms, out);
    out.push(b'}');
}

/// `"2026-01-02T03:04:05.678Z"`, for the years that have an index.
fn write_time(time_ms: i64, out: &mut Vec<u8>) {
    let time = DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
    let year = time.year().unsigned_abs();
    let mut text = *b"\"0000-00-00T00:00:00.000Z\"";
    let mut put = |place: usize, digits: usize, mut number: u32| {
        for digit in text[place..place + digits].iter_mut().rev() {
            *digit = b"0123456789"[(number % 10) as usize];
            number /= 10;
        }
    };
    put(1, 4, year);
    put(6, 2, time.month());
    put(9, 2, time.day());
    put(12, 2, time.hour());
    put(15, 2, time.minute());
    put(18, 2, time.second());
    put(21, 3, time.timestamp_subsec_millis());
    out.extend_from_slice(&text);
}

impl<'a> Fields<'a> {
    fn of_the_event(&mut self, time_ms: i64, rule: Rule) {
        if self.begin(Target::Timestamp) {
            write_time(time_ms, self.out);
        }
        self.copy_text(Source::Event, Target::EventAction);
        self.constant(Target::EventCategory, rule.category);
        self.copy_text(Source::Code, Target::EventCode);
        self.constant(Target::EventDataset, "\"teleport.audit\"");
        self.copy_text(Source::SessionStop, Target::EventEnd);
        self.copy_text(Source::Uid, Target::EventId);
        self.constant(Target::EventKind, "\"event\"");
        self.constant(Target::EventModule, "\"teleport\"");
        if let Some(Kind::Bool(success)) = self.kind(Source::Success) {
            let outcome = if success {
                "\"success\""
            } else {
                "\"failure\""
            };
            self.constant(Target::EventOutcome, outcome);
        }
        self.copy_text(Source::Reason, Target::EventReason);
        self.copy_whole(Source::Ei, Target::EventSequence);
        self.copy_text(Source::SessionStart, Target::EventStart);
        self.constant(Target::EventType, rule.kind);
    }

    fn of_endpoints(&mut self) {
        use Target::{
            ClientAddress, ClientIp, ClientPort, DestinationAddress, DestinationIp,
            DestinationPort, ServerAddress, ServerIp, ServerPort, SourceAddress, SourceIp,
            SourcePort,
        };

        let client = self.endpoint(Source::AddrRemote);
        let source = self.endpoint(Source::SrcAddr).or(client);
        let mut destination = self.endpoint(Source::DstAddr);
        let server = self.endpoint(Source::AddrLocal);
        let server = server.or(self.endpoint(Source::ServerAddr));
        if let (Some(destination), Some(port)) = (&mut destination, self.whole(Source::DstPort)) {
            destination.port = destination.port.or(port_of(port));
        }
        self.write_endpoint(client, [ClientAddress, ClientIp, ClientPort]);
        let targets = [DestinationAddress, DestinationIp, DestinationPort];
        self.write_endpoint(destination, targets);
        self.write_endpoint(server, [ServerAddress, ServerIp, ServerPort]);
        self.write_endpoint(source, [SourceAddress, SourceIp, SourcePort]);
        let all = [client, destination, server, source];
        let ips = all.map(|endpoint| endpoint.and_then(|endpoint| endpoint.ip));
        self.write_related(Target::RelatedIp, ips);
    }

    fn of_the_process(&mut self, action: &[u8]) {
        if let Some(list) = self.list(Source::Argv)
            && self.begin(Target::ProcessArgs)
        {
            self.out.push(b'[');
            self.write_texts(list, b",");
            self.out.push(b']');
        }
        match self.list(Source::InitialCommand) {
            Some(list) => {
                if self.begin(Target::ProcessCommandLine) {
                    self.write_joined(list);
                }
            }
            None => self.copy_text(Source::Command, Target::ProcessCommandLine),
        }
        // The path of a command is its program's, that of other events a file's or a URL's.
        match action {
            b"session.command" => self.copy_text(Source::Path, Target::ProcessExecutable),
            _ if is_web(action) => self.copy_text(Source::Path, Target::UrlPath),
            _ => self.copy_text(Source::Path, Target::FilePath),
        }
        match self.whole(Source::ReturnCode) {
            Some(_) => self.copy_whole(Source::ReturnCode, Target::ProcessExitCode),
            // Of `exec` it is a text.
            None => {
                let code = self
                    .text(Source::ExitCode)
                    .and_then(|text| std::str::from_utf8(text).ok()?.parse::<i32>().ok());
                if let Some(code) = code
                    && self.begin(Target::ProcessExitCode)
                {
                    write_number(code.into(), self.out);
                }
            }
        }
        self.copy_text(Source::Program, Target::ProcessName);
        self.copy_whole(Source::Ppid, Target::ProcessParentPid);
        self.copy_whole(Source::Pid, Target::ProcessPid);
    }

    fn of_the_rest(&mut self, action: &[u8]) {
        self.copy_text(Source::Error, Target::ErrorMessage);
        self.copy_text(Source::ServerHostname, Target::HostHostname);
        self.copy_text(Source::ServerId, Target::HostId);
        self.copy_text(Source::ServerHostname, Target::HostName);
        // Kubernetes requests have other names for the same.
        let is_kubernetes = action == b"kube.request";
        let (method, status) = if is_kubernetes {
            (Source::Verb, Source::ResponseCode)
        } else {
            (Source::Method, Source::StatusCode)
        };
        if is_kubernetes {
            self.copy_text(Source::RequestPath, Target::UrlPath);
        }
        // Logins have a `method` as well.
        if is_kubernetes || is_web(action) {
            self.copy_text(method, Target::HttpMethod);
            self.copy_whole(status, Target::HttpStatus);
        }
        self.copy_text(Source::Proto, Target::NetworkProtocol);
        self.copy_text(Source::ClusterName, Target::OrchestratorCluster);
        let host = self.text(Source::ServerHostname);
        self.write_related(Target::RelatedHosts, [host]);
        let users = [
            Source::User,
            Source::Impersonator,
            Source::Login,
            Source::DbUser,
        ];
        let users = users.map(|source| self.text(source));
        self.write_related(Target::RelatedUser, users);
        self.copy_text(Source::RawQuery, Target::UrlQuery);
        self.copy_text(Source::User, Target::UserName);
        self.copy_text(Source::UserAgent, Target::UserAgentOriginal);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "it is whole and within the bounds"
)]
fn port_of(number: f64) -> Option<u16> {
    (0.0..=65_535.0).contains(&number).then_some(number as u16)
}

/// Requests to web applications.
fn is_web(action: &[u8]) -> bool {
    action.starts_with(b"app.session.")
}
