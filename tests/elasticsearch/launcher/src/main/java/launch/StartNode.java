package launch;

import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.KeyStoreWrapper;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Starts one Elasticsearch node, 8.x or 9.x, in this process.
 *
 * <p>It makes a {@link Node} itself. The product's own main would add the root check, the security
 * manager or entitlements, system-call filters and bootstrap checks, none of which a test needs.
 *
 * <p>System properties: {@code node.home}, {@code node.data}, {@code node.port}, {@code
 * node.security} (true or false), {@code node.password} (of the user elastic), {@code node.extra}
 * (settings as key=value, separated by commas).
 */
public final class StartNode {
    private static final String NAME = "test-1";

    public static void main(String[] args) throws Exception {
        Path home = Path.of(System.getProperty("node.home")).toAbsolutePath();
        Path data = Path.of(System.getProperty("node.data")).toAbsolutePath();
        Path config = Files.createDirectories(data.resolve("config"));
        Files.createDirectories(data.resolve("data"));
        Files.createDirectories(data.resolve("logs"));

        LogConfigurator.configureESLogging();
        Environment environment = InternalSettingsPreparer.prepareEnvironment(settings(home, data), Map.of(), config, () -> NAME);
        Node node = node(environment, home);
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
                node.awaitClose(20, TimeUnit.SECONDS);
            } catch (Exception e) {
                e.printStackTrace();
            } finally {
                closed.countDown();
            }
        }, "shutdown"));
        node.start();
        closed.await();
    }

    private static Settings settings(Path home, Path data) throws Exception {
        Settings.Builder settings = Settings.builder()
            .put("path.home", home.toString())
            .put("path.data", data.resolve("data").toString())
            .put("path.logs", data.resolve("logs").toString())
            .put("cluster.name", "test")
            .put("node.name", NAME)
            .put("node.portsfile", true)
            .put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1")
            .put("http.port", System.getProperty("node.port"))
            .put("transport.port", "0")
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .put("action.destructive_requires_name", false);
        if (Files.isDirectory(home.resolve("modules/x-pack-security"))) {
            boolean security = Boolean.getBoolean("node.security");
            settings.put("xpack.security.enabled", security);
            if (security) {
                settings.put("xpack.security.http.ssl.enabled", false).put("xpack.security.transport.ssl.enabled", false);
                KeyStoreWrapper secrets = KeyStoreWrapper.create();
                secrets.setString("bootstrap.password", System.getProperty("node.password").toCharArray());
                settings.setSecureSettings(secrets);
            }
        }
        String extra = System.getProperty("node.extra", "");
        for (String setting : extra.isBlank() ? new String[0] : extra.split(",")) {
            int equals = setting.indexOf('=');
            settings.put(setting.substring(0, equals).trim(), setting.substring(equals + 1).trim());
        }
        return settings.build();
    }

    /** Until 8.17 a node reads its modules folder itself; later a PluginsLoader is handed to it. */
    private static Node node(Environment environment, Path home) throws Exception {
        Class<?> loader;
        try {
            loader = Class.forName("org.elasticsearch.plugins.PluginsLoader");
        } catch (ClassNotFoundException e) {
            return Node.class.getConstructor(Environment.class).newInstance(environment);
        }
        Object modules = bundles(loader, "loadModulesBundles", home.resolve("modules"));
        Object plugins = bundles(loader, "loadPluginsBundles", home.resolve("plugins"));
        boolean named = Node.class.getModule().isNamed(); // on the class path the server has no module to export from
        Object loaded = loader.getMethod("createPluginsLoader", Set.class, Set.class, Map.class, boolean.class)
            .invoke(null, modules, plugins, Map.of(), named);
        return Node.class.getConstructor(Environment.class, loader).newInstance(environment, loaded);
    }

    /** 8.x takes the folder alone, 9.x a switch more. */
    private static Object bundles(Class<?> loader, String method, Path folder) throws Exception {
        try {
            return loader.getMethod(method, Path.class).invoke(null, folder);
        } catch (NoSuchMethodException e) {
            return loader.getMethod(method, Path.class, boolean.class).invoke(null, folder, false);
        }
    }
}
