package standin;

import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.email.UAX29URLEmailTokenizer;
import org.apache.lucene.analysis.miscellaneous.RemoveDuplicatesTokenFilter;
import org.apache.lucene.analysis.pattern.PatternCaptureGroupTokenFilter;
import org.elasticsearch.Build;
import org.elasticsearch.ResourceNotFoundException;
import org.elasticsearch.Version;
import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.admin.cluster.state.ClusterStateAction;
import org.elasticsearch.action.admin.cluster.state.ClusterStateRequest;
import org.elasticsearch.action.admin.cluster.state.ClusterStateResponse;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.common.io.stream.NamedWriteableRegistry;
import org.elasticsearch.common.settings.ClusterSettings;
import org.elasticsearch.common.settings.IndexScopedSettings;
import org.elasticsearch.common.settings.Setting;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.common.settings.SettingsFilter;
import org.elasticsearch.core.TimeValue;
import org.elasticsearch.index.analysis.PreConfiguredTokenFilter;
import org.elasticsearch.index.analysis.PreConfiguredTokenizer;
import org.elasticsearch.index.analysis.TokenFilterFactory;
import org.elasticsearch.indices.analysis.AnalysisModule;
import org.elasticsearch.ingest.AbstractProcessor;
import org.elasticsearch.ingest.ConfigurationUtils;
import org.elasticsearch.ingest.IngestDocument;
import org.elasticsearch.ingest.Processor;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.IngestPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestController;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.action.RestToXContentListener;
import org.elasticsearch.xcontent.ToXContentObject;
import org.elasticsearch.xcontent.XContentBuilder;
import org.elasticsearch.xcontent.XContentParseException;
import org.elasticsearch.xcontent.XContentParser;

import java.io.IOException;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.function.Predicate;
import java.util.function.Supplier;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * Stands in for the parts of Elasticsearch 8.x that are in no jar on Maven Central: the answer of
 * {@code GET /} (where the server's jar lacks it), lifecycle policies, the analysis parts which the
 * security index names, and a few ingest processors.
 *
 * <p>Policies are checked for the names of phases and actions and kept in memory; they are gone
 * after a restart, and nothing carries them out. One source serves all of 8.x: what changed its
 * signature on the way is reached by raw types or by name.
 *
 * <p>System property {@code standin.ilm}: {@code false} leaves lifecycle policies out altogether,
 * which shows what a server without them answers.
 */
@SuppressWarnings({ "rawtypes", "unchecked" })
public final class StandInPlugin extends Plugin implements ActionPlugin, IngestPlugin, AnalysisPlugin {
    private final boolean ilm = Boolean.parseBoolean(System.getProperty("standin.ilm", "true"));
    private final Rights rights = rights();

    /** Whether a user may do with policies what was asked for. Without security everybody may. */
    interface Rights {
        default List<?> actions() { return List.of(); }

        default void demand(NodeClient client, RestRequest.Method method, ActionListener<Void> then) { then.onResponse(null); }
    }

    /** That of the module rights-8, which nodes with security have. */
    private static Rights rights() {
        try {
            return (Rights) Class.forName("standin.PolicyRights").getConstructor().newInstance();
        } catch (ClassNotFoundException e) {
            return new Rights() {};
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
    }

    @Override
    public List getActions() { return rights.actions(); }

    /** 8.4 and on; no @Override, as later versions have only the other one. */
    public List getRestHandlers(Settings settings, RestController c, ClusterSettings cs, IndexScopedSettings is, SettingsFilter sf,
                                IndexNameExpressionResolver names, Supplier nodes) {
        return handlers(settings);
    }

    /** Later 8.x. */
    public List getRestHandlers(Settings settings, NamedWriteableRegistry w, RestController c, ClusterSettings cs, IndexScopedSettings is,
                                SettingsFilter sf, IndexNameExpressionResolver names, Supplier nodes, Predicate features) {
        return handlers(settings);
    }

    private List<RestHandler> handlers(Settings settings) {
        List<RestHandler> all = new ArrayList<>();
        try {
            Class.forName("org.elasticsearch.rest.action.RestMainAction", false, Plugin.class.getClassLoader());
        } catch (ClassNotFoundException e) {
            all.add(new RestMain(settings));
        }
        if (ilm) all.add(new RestPolicy(rights));
        return all;
    }

    @Override
    public List<Setting<?>> getSettings() {
        if (!ilm) return List.of();
        // From some 8.x on the server itself knows a few of these, and refuses to hear of one twice.
        return Stream.<Setting<?>>of(
            text("index.lifecycle.name"),
            text("index.lifecycle.rollover_alias"),
            flag("index.lifecycle.indexing_complete"),
            flag("index.lifecycle.parse_origination_date"),
            Setting.longSetting("index.lifecycle.origination_date", -1, -1, Setting.Property.Dynamic, Setting.Property.IndexScope)
        ).filter(s -> IndexScopedSettings.BUILT_IN_INDEX_SETTINGS.stream().noneMatch(known -> known.getKey().equals(s.getKey()))).toList();
    }

    private static Setting<String> text(String key) {
        return Setting.simpleString(key, Setting.Property.Dynamic, Setting.Property.IndexScope);
    }

    private static Setting<Boolean> flag(String key) {
        return Setting.boolSetting(key, false, Setting.Property.Dynamic, Setting.Property.IndexScope);
    }

    static final class RestMain extends BaseRestHandler {
        private final String cluster, node;

        RestMain(Settings settings) {
            cluster = settings.get("cluster.name");
            node = settings.get("node.name");
        }

        @Override
        public String getName() { return "stand_in_main"; }

        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.GET, "/"), new Route(RestRequest.Method.HEAD, "/"));
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
            return channel -> {
                var out = new RestToXContentListener<ToXContentObject>(channel);
                client.execute(ClusterStateAction.INSTANCE, stateRequest(), ActionListener.wrap(
                    (ClusterStateResponse r) -> out.onResponse((b, p) -> body(b, r.getState().metadata().clusterUUID())), out::onFailure));
            };
        }

        private static ClusterStateRequest stateRequest() {
            try {
                ClusterStateRequest r;
                try {
                    r = ClusterStateRequest.class.getConstructor().newInstance();
                } catch (NoSuchMethodException e) {
                    r = ClusterStateRequest.class.getConstructor(TimeValue.class).newInstance(TimeValue.timeValueSeconds(30));
                }
                return r.clear().metadata(true).local(true);
            } catch (ReflectiveOperationException e) {
                throw new IllegalStateException(e);
            }
        }

        private XContentBuilder body(XContentBuilder b, String uuid) throws IOException {
            Object build;
            try {
                try {
                    build = Build.class.getMethod("current").invoke(null);
                } catch (NoSuchMethodException e) {
                    build = Build.class.getField("CURRENT").get(null);
                }
            } catch (ReflectiveOperationException e) {
                throw new IllegalStateException(e);
            }
            b.startObject().field("name", node).field("cluster_name", cluster).field("cluster_uuid", uuid);
            b.startObject("version")
                .field("number", get(build, "version", Version.CURRENT.toString()))
                .field("build_flavor", get(build, "flavor", "default"))
                .field("build_type", "unknown")
                .field("build_hash", get(build, "hash", "unknown"))
                .field("build_date", get(build, "date", "unknown"))
                .field("build_snapshot", false)
                .field("lucene_version", org.apache.lucene.util.Version.LATEST.toString())
                .field("minimum_wire_compatibility_version", "7.17.0")
                .field("minimum_index_compatibility_version", "7.0.0")
                .endObject();
            return b.field("tagline", "You Know, for Search").endObject();
        }

        private static String get(Object build, String name, String otherwise) {
            try {
                return String.valueOf(build.getClass().getMethod(name).invoke(build));
            } catch (ReflectiveOperationException e) {
                return otherwise;
            }
        }
    }

    static final class RestPolicy extends BaseRestHandler {
        private static final Set<String> PHASES = Set.of("hot", "warm", "cold", "frozen", "delete");
        private static final Set<String> ACTIONS = Set.of("allocate", "delete", "downsample", "forcemerge", "freeze", "migrate", "readonly",
            "rollover", "searchable_snapshot", "set_priority", "shrink", "unfollow", "wait_for_snapshot");

        private record Policy(Object policy, long version, String modified) {}

        private final Map<String, Policy> policies = new ConcurrentSkipListMap<>();
        private final Rights rights;

        RestPolicy(Rights rights) { this.rights = rights; }

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

        private static XContentParseException bad(String reason) { return new XContentParseException(reason); }

        private static Map<String, Object> map(Object o, String what) {
            if (o instanceof Map m) return m;
            throw bad("[" + what + "] failed to parse: an object is needed");
        }

        private static void check(Map<String, Object> body) {
            if (!body.keySet().equals(Set.of("policy"))) throw bad("[put_lifecycle_request] needs [policy], and nothing else: " + body.keySet());
            Map<String, Object> policy = map(body.get("policy"), "lifecycle_policy");
            if (!policy.containsKey("phases")) throw bad("[lifecycle_policy] needs [phases]");
            for (String key : policy.keySet()) {
                if (!Set.of("phases", "_meta", "deprecated").contains(key)) throw bad("[lifecycle_policy] unknown field [" + key + "]");
            }
            map(policy.get("phases"), "phases").forEach((phase, def) -> {
                if (!PHASES.contains(phase)) throw new IllegalArgumentException("Timeseries lifecycle does not support phase [" + phase + "]");
                map(def, "phase").forEach((key, value) -> {
                    switch (key) {
                        case "min_age" -> TimeValue.parseTimeValue(String.valueOf(value), "min_age");
                        case "actions" -> map(value, "actions").keySet().forEach(a -> {
                            if (!ACTIONS.contains(a)) throw bad("[actions] failed to parse field [" + a + "]: unknown field [" + a + "]");
                        });
                        default -> throw bad("[phase] unknown field [" + key + "]");
                    }
                });
            });
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest r, NodeClient client) throws IOException {
            String name = r.param("name");
            r.param("master_timeout"); // taken, so that they are not refused as unknown
            r.param("timeout");
            Map<String, Object> body;
            if (r.method() == RestRequest.Method.PUT) {
                try (XContentParser parser = r.contentParser()) {
                    body = parser.map();
                }
                check(body);
            } else {
                body = Map.of();
            }
            return channel -> {
                var out = new RestToXContentListener<ToXContentObject>(channel);
                rights.demand(client, r.method(), ActionListener.wrap(
                    may -> ActionListener.completeWith(out, () -> answer(r.method(), name, body.get("policy"))), out::onFailure));
            };
        }

        private ToXContentObject answer(RestRequest.Method method, String name, Object policy) {
            switch (method) {
                case PUT -> policies.compute(name, (n, old) -> new Policy(policy, old == null ? 1 : old.version + 1, Instant.now().toString()));
                case DELETE -> {
                    if (policies.remove(name) == null) throw new ResourceNotFoundException("Lifecycle policy not found: {}", name);
                }
                default -> {
                    Map<String, Policy> found = new TreeMap<>();
                    for (String n : name == null ? policies.keySet() : List.of(name.split(","))) {
                        Policy p = policies.get(n);
                        if (p == null) throw new ResourceNotFoundException("Lifecycle policy not found: {}", n);
                        found.put(n, p);
                    }
                    return (b, params) -> {
                        b.startObject();
                        for (Map.Entry<String, Policy> e : found.entrySet()) {
                            b.startObject(e.getKey()).field("version", e.getValue().version).field("modified_date", e.getValue().modified);
                            b.field("policy", e.getValue().policy).endObject();
                        }
                        return b.endObject();
                    };
                }
            }
            return (b, params) -> b.startObject().field("acknowledged", true).endObject();
        }
    }

    @Override
    public Map<String, Processor.Factory> getProcessors(Processor.Parameters parameters) {
        return Map.of(
            "set", (all, tag, desc, config) -> {
                String field = ConfigurationUtils.readStringProperty("set", tag, config, "field");
                Object value = ConfigurationUtils.readObject("set", tag, config, "value");
                return new Step("set", tag, desc, doc -> { doc.setFieldValue(field, value); return doc; });
            },
            "remove", (all, tag, desc, config) -> {
                String field = ConfigurationUtils.readStringProperty("remove", tag, config, "field");
                return new Step("remove", tag, desc, doc -> { doc.removeField(field); return doc; });
            },
            "fail", (all, tag, desc, config) -> {
                String message = ConfigurationUtils.readStringProperty("fail", tag, config, "message");
                return new Step("fail", tag, desc, doc -> { throw new IllegalStateException(message); });
            },
            "drop", (all, tag, desc, config) -> new Step("drop", tag, desc, doc -> null)
        );
    }

    /** What the mapping of the security index asks for; Lucene has the work, analysis-common only its names. */
    @Override
    public Map<String, AnalysisModule.AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
        return Map.of("pattern_capture", AnalysisPlugin.requiresAnalysisSettings((index, env, name, settings) -> {
            Pattern[] patterns = settings.getAsList("patterns").stream().map(Pattern::compile).toArray(Pattern[]::new);
            boolean keep = settings.getAsBoolean("preserve_original", true);
            return new TokenFilterFactory() {
                @Override
                public String name() { return name; }

                @Override
                public TokenStream create(TokenStream in) { return new PatternCaptureGroupTokenFilter(in, keep, patterns); }
            };
        }));
    }

    @Override
    public List<PreConfiguredTokenFilter> getPreConfiguredTokenFilters() {
        return List.of(PreConfiguredTokenFilter.singleton("unique", false, RemoveDuplicatesTokenFilter::new));
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
}
