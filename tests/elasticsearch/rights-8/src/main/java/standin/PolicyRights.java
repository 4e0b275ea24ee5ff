package standin;

import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.ActionRequest;
import org.elasticsearch.action.ActionRequestValidationException;
import org.elasticsearch.action.ActionResponse;
import org.elasticsearch.action.ActionType;
import org.elasticsearch.action.support.ActionFilters;
import org.elasticsearch.action.support.TransportAction;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.common.util.concurrent.EsExecutors;
import org.elasticsearch.injection.guice.Inject;
import org.elasticsearch.plugins.ActionPlugin.ActionHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.tasks.Task;
import org.elasticsearch.transport.TransportService;

import java.util.List;
import java.util.Map;

/**
 * Asks the product's security whether the user may read or change policies: an action that does
 * nothing is run under the product's name for it, which is what read_ilm and manage_ilm allow.
 * 8.19 only: what it is made of has other names before.
 */
public final class PolicyRights implements StandInPlugin.Rights {
    private static final Kind PUT = new Kind("put"), GET = new Kind("get"), DELETE = new Kind("delete");
    private static final Map<RestRequest.Method, Kind> KINDS =
        Map.of(RestRequest.Method.PUT, PUT, RestRequest.Method.GET, GET, RestRequest.Method.DELETE, DELETE);

    @Override
    public List<?> actions() {
        return List.of(new ActionHandler<>(PUT, Put.class), new ActionHandler<>(GET, Get.class), new ActionHandler<>(DELETE, Delete.class));
    }

    @Override
    public void demand(NodeClient client, RestRequest.Method method, ActionListener<Void> then) {
        client.execute(KINDS.get(method), new Request(), then.map(allowed -> null));
    }

    private static final class Kind extends ActionType<ActionResponse.Empty> {
        Kind(String verb) { super("cluster:admin/ilm/" + verb); }
    }

    public static final class Request extends ActionRequest {
        @Override
        public ActionRequestValidationException validate() { return null; }
    }

    private abstract static class Nothing extends TransportAction<Request, ActionResponse.Empty> {
        Nothing(Kind kind, ActionFilters filters, TransportService transport) {
            super(kind.name(), filters, transport.getTaskManager(), EsExecutors.DIRECT_EXECUTOR_SERVICE);
        }

        @Override
        protected void doExecute(Task task, Request request, ActionListener<ActionResponse.Empty> then) {
            then.onResponse(ActionResponse.Empty.INSTANCE);
        }
    }

    public static final class Put extends Nothing {
        @Inject
        public Put(ActionFilters filters, TransportService transport) { super(PUT, filters, transport); }
    }

    public static final class Get extends Nothing {
        @Inject
        public Get(ActionFilters filters, TransportService transport) { super(GET, filters, transport); }
    }

    public static final class Delete extends Nothing {
        @Inject
        public Delete(ActionFilters filters, TransportService transport) { super(DELETE, filters, transport); }
    }
}
