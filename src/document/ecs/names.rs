//! The members that are read, and the fields that are written.

macro_rules! names {
    ($(#[$doc:meta])* $list:ident of $name:ident: $($id:ident $text:literal)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) enum $name { $($id),* }

        /// Their names, in the same order.
        pub(super) const $list: &[&str] = &[$($text),*];
    };
}

names! {
    /// The members of events that become ECS fields.
    SOURCES of Source:
    AddrLocal "addr.local" AddrRemote "addr.remote" Argv "argv" ClusterName "cluster_name"
    Code "code" Command "command" DbUser "db_user" DstAddr "dst_addr" DstPort "dst_port" Ei "ei"
    Error "error" Event "event" ExitCode "exitCode" Impersonator "impersonator"
    InitialCommand "initial_command" Login "login" Method "method" Path "path" Pid "pid"
    Ppid "ppid" Program "program" Proto "proto" RawQuery "raw_query" Reason "reason"
    RequestPath "request_path" ResponseCode "response_code" ReturnCode "return_code"
    ServerAddr "server_addr" ServerHostname "server_hostname" ServerId "server_id"
    SessionStart "session_start" SessionStop "session_stop" SrcAddr "src_addr"
    StatusCode "status_code" Success "success" Uid "uid" User "user" UserAgent "user_agent"
    Verb "verb"
}

names! {
    /// The ECS fields, in the order in which they are written.
    TARGETS of Target:
    Timestamp "@timestamp" EventAction "event.action" EventCategory "event.category"
    EventCode "event.code" EventDataset "event.dataset" EventEnd "event.end" EventId "event.id"
    EventKind "event.kind" EventModule "event.module" EventOutcome "event.outcome"
    EventReason "event.reason" EventSequence "event.sequence" EventStart "event.start"
    EventType "event.type" ClientAddress "client.address" ClientIp "client.ip"
    ClientPort "client.port" DestinationAddress "destination.address"
    DestinationIp "destination.ip" DestinationPort "destination.port"
    ErrorMessage "error.message" FilePath "file.path" HostHostname "host.hostname"
    HostId "host.id" HostName "host.name" HttpMethod "http.request.method"
    HttpStatus "http.response.status_code" NetworkProtocol "network.protocol"
    OrchestratorCluster "orchestrator.cluster.name" ProcessArgs "process.args"
    ProcessCommandLine "process.command_line" ProcessExecutable "process.executable"
    ProcessExitCode "process.exit_code" ProcessName "process.name"
    ProcessParentPid "process.parent.pid" ProcessPid "process.pid"
    RelatedHosts "related.hosts" RelatedIp "related.ip" RelatedUser "related.user"
    ServerAddress "server.address" ServerIp "server.ip" ServerPort "server.port"
    SourceAddress "source.address" SourceIp "source.ip" SourcePort "source.port"
    UrlPath "url.path" UrlQuery "url.query" UserName "user.name"
    UserAgentOriginal "user_agent.original"
}
