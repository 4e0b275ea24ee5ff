package standin;

import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.email.UAX29URLEmailTokenizer;
import org.apache.lucene.analysis.miscellaneous.RemoveDuplicatesTokenFilter;
import org.apache.lucene.analysis.pattern.PatternCaptureGroupTokenFilter;
import org.elasticsearch.Build;
import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.ActionRequest;
import org.elasticsearch.action.ActionRequestValidationException;
import org.elasticsearch.action.ActionResponse;
import org.elasticsearch.action.ActionType;
import org.elasticsearch.action.support.ActionFilters;
import org.elasticsearch.action.support.TransportAction;
import org.elasticsearch.action.support.local.TransportLocalClusterStateAction;
import org.elasticsearch.action.support.master.AcknowledgedRequest;
import org.elasticsearch.action.support.master.AcknowledgedResponse;
import org.elasticsearch.action.support.master.TransportMasterNodeAction;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.AckedClusterStateUpdateTask;
import org.elasticsearch.cluster.ClusterState;
import org.elasticsearch.cluster.block.ClusterBlockException;
import org.elasticsearch.cluster.block.ClusterBlockLevel;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.metadata.Metadata;
import org.elasticsearch.cluster.metadata.ProjectId;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.cluster.project.ProjectResolver;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.io.stream.StreamOutput;
import org.elasticsearch.common.settings.Setting;
import org.elasticsearch.common.util.concurrent.EsExecutors;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.index.IndexVersion;
import org.elasticsearch.ingest.AbstractProcessor;
import org.elasticsearch.ingest.ConfigurationUtils;
import org.elasticsearch.ingest.IngestDocument;
import org.elasticsearch.ingest.Processor;
import org.elasticsearch.index.analysis.AbstractTokenFilterFactory;
import org.elasticsearch.index.analysis.PreConfiguredTokenFilter;
import org.elasticsearch.index.analysis.PreConfiguredTokenizer;
import org.elasticsearch.index.analysis.TokenFilterFactory;
import org.elasticsearch.indices.analysis.AnalysisModule;
import org.elasticsearch.injection.guice.Inject;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.IngestPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestUtils;
import org.elasticsearch.rest.action.RestChunkedToXContentListener;
import org.elasticsearch.rest.action.RestToXContentListener;
import org.elasticsearch.tasks.Task;
import org.elasticsearch.threadpool.ThreadPool;
import org.elasticsearch.transport.TransportService;
import org.elasticsearch.xcontent.NamedXContentRegistry;
import org.elasticsearch.xcontent.ParseField;
import org.elasticsearch.xcontent.ToXContentObject;
import org.elasticsearch.xcontent.XContentBuilder;
import org.elasticsearch.xcontent.XContentParser;
import org.elasticsearch.xpack.core.ilm.*;
import org.elasticsearch.xpack.core.ilm.action.DeleteLifecycleAction;
import org.elasticsearch.xpack.core.ilm.action.GetLifecycleAction;
import org.elasticsearch.xpack.core.ilm.action.ILMActions;
import org.elasticsearch.xpack.core.ilm.action.PutLifecycleRequest;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.function.Predicate;
import java.util.function.Supplier;
import java.util.regex.Pattern;

/**
 * Stands in for the parts of Elasticsearch 9.x that are in no jar on Maven Central: the answer of
 * {@code GET /}, lifecycle policies, the analysis parts which the security index names, and a few
 * ingest processors.
 *
 * <p>Policies are parsed and checked by x-pack-core's own classes and kept in the cluster state,
 * under the product's action names, so that privileges count. Nothing carries a policy out.
 */
public final class StandInPlugin extends Plugin implements ActionPlugin, IngestPlugin, AnalysisPlugin {

    @Override
    public Collection<ActionHandler> getActions() {
        return List.of(
            new ActionHandler(Main.TYPE, Main.Transport.class),
            new ActionHandler(ILMActions.PUT, PutPolicy.class),
            new ActionHandler(GetLifecycleAction.INSTANCE, GetPolicy.class),
            new ActionHandler(DeleteLifecycleAction.INSTANCE, DeletePolicy.class)
        );
    }

    @Override
    public Collection<RestHandler> getRestHandlers(RestHandlersServices s, Supplier<DiscoveryNodes> n, Predicate<NodeFeature> f) {
        return List.of(new RestMain(), new RestPolicy());
    }

    @Override
    public List<Setting<?>> getSettings() {
        return List.of(
            LifecycleSettings.LIFECYCLE_POLL_INTERVAL_SETTING,
            LifecycleSettings.LIFECYCLE_NAME_SETTING,
            LifecycleSettings.LIFECYCLE_INDEXING_COMPLETE_SETTING,
            LifecycleSettings.LIFECYCLE_STEP_WAIT_TIME_THRESHOLD_SETTING,
            LifecycleSettings.LIFECYCLE_ROLLOVER_ONLY_IF_HAS_DOCUMENTS_SETTING,
            RolloverAction.LIFECYCLE_ROLLOVER_ALIAS_SETTING
        );
    }

    private interface Parse<T> { T from(XContentParser p) throws IOException; }

    private static <T extends LifecycleAction> NamedXContentRegistry.Entry action(String name, Parse<T> parse) {
        return new NamedXContentRegistry.Entry(LifecycleAction.class, new ParseField(name), p -> parse.from(p));
    }

    @Override
    public List<NamedXContentRegistry.Entry> getNamedXContent() {
        return List.of(
            new NamedXContentRegistry.Entry(
                Metadata.ProjectCustom.class, new ParseField(IndexLifecycleMetadata.TYPE), p -> IndexLifecycleMetadata.PARSER.parse(p, null)),
            new NamedXContentRegistry.Entry(
                LifecycleType.class, new ParseField(TimeseriesLifecycleType.TYPE), p -> TimeseriesLifecycleType.INSTANCE),
            action(AllocateAction.NAME, AllocateAction::parse),
            action(ForceMergeAction.NAME, ForceMergeAction::parse),
            action(ReadOnlyAction.NAME, ReadOnlyAction::parse),
            action(RolloverAction.NAME, RolloverAction::parse),
            action(ShrinkAction.NAME, ShrinkAction::parse),
            action(DeleteAction.NAME, DeleteAction::parse),
            action(FreezeAction.NAME, FreezeAction::parse),
            action(SetPriorityAction.NAME, SetPriorityAction::parse),
            action(UnfollowAction.NAME, UnfollowAction::parse),
            action(WaitForSnapshotAction.NAME, WaitForSnapshotAction::parse),
            action(SearchableSnapshotAction.NAME, SearchableSnapshotAction::parse),
            action(MigrateAction.NAME, MigrateAction::parse),
            action(DownsampleAction.NAME, DownsampleAction::parse)
        );
    }

    @Override
    public Map<String, Processor.Factory> getProcessors(Processor.Parameters parameters) {
        return Map.of(
            "set", (all, tag, desc, config, project) -> {
                String field = ConfigurationUtils.readStringProperty("set", tag, config, "field");
                Object value = ConfigurationUtils.readObject("set", tag, config, "value");
                return new Step("set", tag, desc, doc -> { doc.setFieldValue(field, value); return doc; });
            },
            "remove", (all, tag, desc, config, project) -> {
                String field = ConfigurationUtils.readStringProperty("remove", tag, config, "field");
                return new Step("remove", tag, desc, doc -> { doc.removeField(field); return doc; });
            },
            "fail", (all, tag, desc, config, project) -> {
                String message = ConfigurationUtils.readStringProperty("fail", tag, config, "message");
                return new Step("fail", tag, desc, doc -> { throw new IllegalStateException(message); });
            },
            "drop", (all, tag, desc, config, project) -> new Step("drop", tag, desc, doc -> null)
        );
    }

    /** What the mapping of the security index asks for; Lucene has the work, analysis-common only its names. */
    @Override
    public Map<String, AnalysisModule.AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
        return Map.of("pattern_capture", AnalysisPlugin.requiresAnalysisSettings((index, env, name, settings) -> {
            Pattern[] patterns = settings.getAsList("patterns").stream().map(Pattern::compile).toArray(Pattern[]::new);
            boolean keep = settings.getAsBoolean("preserve_original", true);
            return new AbstractTokenFilterFactory(name) {
                @Override
                public TokenStream create(TokenStream in) { return new PatternCaptureGroupTokenFilter(in, keep, patterns); }
            };
        }));
    }

    @Override
    public List<PreConfiguredTokenFilter> getPreConfiguredTokenFilters() {
        return List.of(
            PreConfiguredTokenFilter.singleton("unique", false, RemoveDuplicatesTokenFilter::new)
        );
    }

    @Override
    public List<PreConfiguredTokenizer> getPreConfiguredTokenizers() {
        return List.of(PreConfiguredTokenizer.singleton("uax_url_email", UAX29URLEmailTokenizer::new));
    }

    private static final class Step extends AbstractProcessor {
        interface Work { IngestDocument on(IngestDocument doc) throws Exception; }

        private final String type;
        private final Work work;

        Step(String type, String tag, String description, Work work) {
            super(tag, description);
            this.type = type;
            this.work = work;
        }

        @Override
        public IngestDocument execute(IngestDocument doc) throws Exception { return work.on(doc); }

        @Override
        public String getType() { return type; }
    }

    /** GET /, under the action name whose privilege is `monitor`, as in the product. */
    static final class Main {
        static final ActionType<Response> TYPE = new ActionType<>("cluster:monitor/main");

        static final class Request extends ActionRequest {
            @Override
            public ActionRequestValidationException validate() { return null; }
        }

        static final class Response extends ActionResponse implements ToXContentObject {
            final String node, cluster, uuid;

            Response(String node, String cluster, String uuid) {
                this.node = node;
                this.cluster = cluster;
                this.uuid = uuid;
            }

            @Override
            public void writeTo(StreamOutput out) { TransportAction.localOnly(); }

            @Override
            public XContentBuilder toXContent(XContentBuilder b, Params params) throws IOException {
                Build build = Build.current();
                b.startObject().field("name", node).field("cluster_name", cluster).field("cluster_uuid", uuid);
                b.startObject("version")
                    .field("number", build.version())
                    .field("build_flavor", build.flavor())
                    .field("build_type", build.type().displayName())
                    .field("build_hash", build.hash())
                    .field("build_date", build.date())
                    .field("build_snapshot", build.isSnapshot())
                    .field("lucene_version", IndexVersion.current().luceneVersion().toString())
                    .field("minimum_wire_compatibility_version", build.minWireCompatVersion())
                    .field("minimum_index_compatibility_version", build.minIndexCompatVersion())
                    .endObject();
                return b.field("tagline", "You Know, for Search").endObject();
            }
        }

        public static final class Transport extends TransportAction<Request, Response> {
            private final ClusterService clusters;

            @Inject
            public Transport(ActionFilters filters, TransportService transport, ClusterService clusters) {
                super(TYPE.name(), filters, transport.getTaskManager(), EsExecutors.DIRECT_EXECUTOR_SERVICE);
                this.clusters = clusters;
            }

            @Override
            protected void doExecute(Task task, Request request, ActionListener<Response> done) {
                ClusterState s = clusters.state();
                done.onResponse(new Response(clusters.localNode().getName(), s.getClusterName().value(), s.metadata().clusterUUID()));
            }
        }
    }

    static final class RestMain extends BaseRestHandler {
        @Override
        public String getName() { return "stand_in_main"; }

        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.GET, "/"), new Route(RestRequest.Method.HEAD, "/"));
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
            return channel -> client.execute(Main.TYPE, new Main.Request(), new RestToXContentListener<>(channel));
        }
    }

    static final class RestPolicy extends BaseRestHandler {
        @Override
        public String getName() { return "stand_in_ilm_policy"; }

        @Override
        public List<Route> routes() {
            return List.of(
                new Route(RestRequest.Method.PUT, "/_ilm/policy/{name}"),
                new Route(RestRequest.Method.GET, "/_ilm/policy/{name}"),
                new Route(RestRequest.Method.GET, "/_ilm/policy"),
                new Route(RestRequest.Method.DELETE, "/_ilm/policy/{name}")
            );
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest r, NodeClient client) throws IOException {
            String name = r.param("name");
            switch (r.method()) {
                case PUT: {
                    PutLifecycleRequest put;
                    try (XContentParser parser = r.contentParser()) {
                        put = PutLifecycleRequest.parseRequest(new PutLifecycleRequest.Factory() {
                            @Override
                            public PutLifecycleRequest create(LifecyclePolicy policy) {
                                return new PutLifecycleRequest(RestUtils.getMasterNodeTimeout(r), RestUtils.getAckTimeout(r), policy);
                            }

                            @Override
                            public String getPolicyName() { return name; }
                        }, parser);
                    }
                    return channel -> client.execute(ILMActions.PUT, put, new RestToXContentListener<>(channel));
                }
                case DELETE: {
                    var delete = new DeleteLifecycleAction.Request(RestUtils.getMasterNodeTimeout(r), RestUtils.getAckTimeout(r), name);
                    return channel -> client.execute(DeleteLifecycleAction.INSTANCE, delete, new RestToXContentListener<>(channel));
                }
                default: {
                    var get = new GetLifecycleAction.Request(
                        RestUtils.getMasterNodeTimeout(r), name == null ? new String[0] : name.split(","));
                    return channel -> client.execute(
                        GetLifecycleAction.INSTANCE, get, new RestChunkedToXContentListener<>(channel));
                }
            }
        }
    }

    private static IndexLifecycleMetadata policies(ClusterState state, ProjectId project) {
        return state.metadata().getProject(project).custom(IndexLifecycleMetadata.TYPE, IndexLifecycleMetadata.EMPTY);
    }

    /** One change of the stored policies, acknowledged once the cluster state carries it. */
    private abstract static class Change<R extends AcknowledgedRequest<R>> extends TransportMasterNodeAction<R, AcknowledgedResponse> {
        final ProjectResolver projects;

        Change(String name, TransportService t, ClusterService c, ThreadPool p, ActionFilters f, ProjectResolver projects,
               org.elasticsearch.common.io.stream.Writeable.Reader<R> reader) {
            super(name, t, c, p, f, reader, AcknowledgedResponse::readFrom, EsExecutors.DIRECT_EXECUTOR_SERVICE);
            this.projects = projects;
        }

        abstract void apply(R request, SortedMap<String, LifecyclePolicyMetadata> policies);

        @Override
        protected void masterOperation(Task task, R request, ClusterState state, ActionListener<AcknowledgedResponse> done) {
            ProjectId project = projects.getProjectId();
            clusterService.submitUnbatchedStateUpdateTask(actionName, new AckedClusterStateUpdateTask(request, done) {
                @Override
                public ClusterState execute(ClusterState now) {
                    IndexLifecycleMetadata old = policies(now, project);
                    SortedMap<String, LifecyclePolicyMetadata> next = new TreeMap<>(old.getPolicyMetadatas());
                    apply(request, next);
                    return now.copyAndUpdateProject(project, b ->
                        b.putCustom(IndexLifecycleMetadata.TYPE, new IndexLifecycleMetadata(next, OperationMode.RUNNING)));
                }
            });
        }

        @Override
        protected ClusterBlockException checkBlock(R request, ClusterState state) {
            return state.blocks().globalBlockedException(ClusterBlockLevel.METADATA_WRITE);
        }
    }

    public static final class PutPolicy extends Change<PutLifecycleRequest> {
        @Inject
        public PutPolicy(TransportService t, ClusterService c, ThreadPool p, ActionFilters f, ProjectResolver projects) {
            super(ILMActions.PUT.name(), t, c, p, f, projects, PutLifecycleRequest::new);
        }

        @Override
        void apply(PutLifecycleRequest request, SortedMap<String, LifecyclePolicyMetadata> policies) {
            LifecyclePolicy policy = request.getPolicy();
            LifecyclePolicyMetadata had = policies.get(policy.getName());
            long version = had == null ? 1 : had.getVersion() + (Objects.equals(had.getPolicy(), policy) ? 0 : 1);
            policies.put(policy.getName(), new LifecyclePolicyMetadata(policy, Map.of(), version, System.currentTimeMillis()));
        }
    }

    public static final class DeletePolicy extends Change<DeleteLifecycleAction.Request> {
        @Inject
        public DeletePolicy(TransportService t, ClusterService c, ThreadPool p, ActionFilters f, ProjectResolver projects) {
            super(DeleteLifecycleAction.NAME, t, c, p, f, projects, DeleteLifecycleAction.Request::new);
        }

        @Override
        void apply(DeleteLifecycleAction.Request request, SortedMap<String, LifecyclePolicyMetadata> policies) {
            if (policies.remove(request.getPolicyName()) == null) {
                throw new org.elasticsearch.ResourceNotFoundException("Lifecycle policy not found: {}", request.getPolicyName());
            }
        }
    }

    public static final class GetPolicy extends TransportLocalClusterStateAction<GetLifecycleAction.Request, GetLifecycleAction.Response> {
        private final ProjectResolver projects;
        private final IndexNameExpressionResolver names;

        @Inject
        public GetPolicy(TransportService t, ClusterService c, ActionFilters f, ProjectResolver projects, IndexNameExpressionResolver names) {
            super(GetLifecycleAction.NAME, f, t.getTaskManager(), c, EsExecutors.DIRECT_EXECUTOR_SERVICE);
            this.projects = projects;
            this.names = names;
        }

        @Override
        protected ClusterBlockException checkBlock(GetLifecycleAction.Request request, ClusterState state) {
            return state.blocks().globalBlockedException(ClusterBlockLevel.METADATA_READ);
        }

        @Override
        protected void localClusterStateOperation(Task task, GetLifecycleAction.Request request, ClusterState state,
                                                  ActionListener<GetLifecycleAction.Response> done) {
            Map<String, LifecyclePolicyMetadata> all = policies(state, projects.getProjectId());
            List<String> wanted = request.getPolicyNames().length == 0
                ? List.copyOf(all.keySet()) : Arrays.asList(request.getPolicyNames());
            var usage = new LifecyclePolicyUsageCalculator(names, projects.getProjectMetadata(state), wanted);
            List<GetLifecycleAction.LifecyclePolicyResponseItem> items = new ArrayList<>();
            for (String name : wanted) {
                LifecyclePolicyMetadata m = all.get(name);
                if (m == null) {
                    done.onFailure(new org.elasticsearch.ResourceNotFoundException("Lifecycle policy not found: {}", name));
                    return;
                }
                items.add(new GetLifecycleAction.LifecyclePolicyResponseItem(
                    m.getPolicy(), m.getVersion(), m.getModifiedDateString(), usage.retrieveCalculatedUsage(name)));
            }
            done.onResponse(new GetLifecycleAction.Response(items));
        }

        private static Map<String, LifecyclePolicyMetadata> policies(ClusterState state, ProjectId project) {
            return StandInPlugin.policies(state, project).getPolicyMetadatas();
        }
    }
}
