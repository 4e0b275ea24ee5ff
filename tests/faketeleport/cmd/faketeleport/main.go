// Command faketeleport acts as a Teleport Auth server (and, if asked, Proxy)
// for tests of audit-event export clients.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"encoding/json"

	"faketeleport/internal/fake"
)

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	if err := run(); err != nil {
		log.Fatal("faketeleport: ", err)
	}
}

func run() error {
	var (
		dir       = flag.String("dir", "./faketeleport-out", "directory for identity files and CAs")
		addr      = flag.String("addr", "127.0.0.1:3025", "Auth server address (port 0: any)")
		ctrl      = flag.String("ctrl", "127.0.0.1:0", "control endpoint address")
		proxy     = flag.String("proxy", "", "Proxy address with TLS routing (empty: none)")
		alb       = flag.String("alb", "", "Proxy address behind which ALPN is lost (empty: none)")
		tunnel    = flag.String("ssh-tunnel", "", "plain SSH reverse tunnel address (empty: none)")
		noRouting = flag.Bool("no-tls-routing", false, "/webapi/find says that TLS routing is off")
		cluster   = flag.String("cluster", "fake.example.test", "cluster name")
		seed      = flag.Uint64("seed", 1, "seed of keys and events")
		keyType   = flag.String("key-type", "ecdsa", "ecdsa, rsa or ed25519")
		user      = flag.String("user", "teleport-event-handler", "user name in the client identity")
		events    = flag.Int("events", 10000, "number of audit events")
		days      = flag.Int("days", 3, "days that the events are spread over, the last being today (UTC)")
		sessions  = flag.Int("sessions", 20, "number of sessions (4 of the events each)")
		sessEv    = flag.Int("session-events", 25, "events in each session recording")
		now       = flag.String("now", "", "RFC 3339 time taken as now when making events")
		jsonl     = flag.String("jsonl", "", "serve the events of this file instead")
		chunk     = flag.Int("chunk", 5000, "events in an export chunk")
		page      = flag.Int("page-bytes", 1<<20, "most bytes of events in a search answer")
		noUID     = flag.Int("no-uid-every", 0, "every Nth event has no uid")
		emptyID   = flag.Int("empty-id-every", 0, "every Nth event has neither uid nor id")
		bigEvery  = flag.Int("big-every", 0, "every Nth event is big")
		bigBytes  = flag.Int("big-bytes", 256<<10, "how big")
		failPct   = flag.Int("failed-login-pct", 10, "percentage of logins that fail")
		ttl       = flag.Duration("cert-ttl", 24*time.Hour, "life of the client certificate")
		renew     = flag.Duration("renew-every", 0, "rewrite the identity with a new certificate this often")
		expired   = flag.Bool("expired", false, "the client certificate in `identity` has expired already")
		fault     = flag.String("faults", "", "faults at the start, as JSON")
		lateN     = flag.Int("late", 0, "this many events of yesterday turn up late ...")
		lateAfter = flag.Duration("late-after", 20*time.Second, "... so long after the start")
		version   = flag.String("server-version", "17.2.1", "version in Ping's answer")
		cloud     = flag.Bool("cloud", false, "Ping says Teleport Cloud")
		only      = flag.Bool("identity-only", false, "write the identity files and stop")
		ready     = flag.String("ready", "", "write the addresses to this file (JSON) when ready")
		quiet     = flag.Bool("quiet", false, "say nothing but the statistics at the end")
	)
	flag.Parse()
	logf := log.Printf
	if *quiet {
		logf = func(string, ...any) {}
	}
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		return err
	}
	pki, err := fake.NewPKI(*cluster, *seed, *keyType)
	if err != nil {
		return err
	}
	if err := pki.WriteCAs(*dir); err != nil {
		return err
	}
	spec := func() fake.ClientSpec {
		n := time.Now().UTC()
		return fake.ClientSpec{User: *user, Roles: []string{"teleport-event-handler"}, Logins: []string{*user}, NotBefore: n.Add(-time.Minute), NotAfter: n.Add(*ttl)}
	}
	write := func(name string, s fake.ClientSpec) error {
		id, err := pki.IssueClient(s)
		if err != nil {
			return err
		}
		return fake.WriteIdentity(*dir, name, id)
	}
	past := func(s fake.ClientSpec) fake.ClientSpec {
		s.NotBefore, s.NotAfter = s.NotBefore.Add(-3*time.Hour), time.Now().Add(-time.Hour)
		return s
	}
	var mu sync.Mutex
	renewals := 0
	issue := func() error {
		mu.Lock()
		defer mu.Unlock()
		s := spec()
		if *expired {
			s = past(s)
		}
		if renewals > 0 {
			s.KeyLabel = "client" + strconv.Itoa(renewals) // a renewed identity has a key of its own, as tbot's
		}
		renewals++
		return write("identity", s)
	}
	if err := issue(); err != nil {
		return err
	}
	if err := write("identity-expired", past(spec())); err != nil {
		return err
	}
	rogue := spec()
	rogue.Rogue = true
	if err := write("identity-untrusted", rogue); err != nil {
		return err
	}
	if *only {
		return nil
	}

	at := time.Now().UTC()
	if *now != "" {
		if at, err = time.Parse(time.RFC3339Nano, *now); err != nil {
			return err
		}
	}
	gen := fake.NewGen(fake.GenConfig{
		Seed: *seed, Cluster: *cluster, Events: *events, Days: *days, Sessions: *sessions, SessionEvents: max(*sessEv, 2), Now: at,
		NoUIDEvery: *noUID, EmptyIDEvery: *emptyID, BigEvery: *bigEvery, BigBytes: *bigBytes, FailedLoginPct: *failPct,
	})
	store := fake.NewStore(*chunk, gen)
	t0 := time.Now()
	if *jsonl != "" {
		f, err := os.Open(*jsonl)
		if err != nil {
			return err
		}
		err = store.LoadJSONL(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", *jsonl, err)
		}
	} else {
		debug.SetGCPercent(800) // making events is all garbage
		if err := store.Generate(); err != nil {
			return err
		}
		debug.SetGCPercent(100)
	}
	size := 0
	for _, r := range store.All() {
		size += len(r.Enc)
	}
	logf("%d events in %v, %d bytes each as sent", len(store.All()), time.Since(t0).Round(time.Millisecond), size/max(len(store.All()), 1))
	runtime.GC()

	srv := &fake.Server{PKI: pki, Store: store, PageBytes: *page, Version: *version, Cloud: *cloud}
	if *fault != "" {
		if err := srv.Faults.Merge([]byte(*fault), func() int64 { return time.Now().UnixNano() }); err != nil {
			return fmt.Errorf("--faults: %w", err)
		}
	}
	listen := func(a string) (net.Listener, error) {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return nil, err
		}
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			return nil, fmt.Errorf("%s is not a loopback address", a)
		}
		return net.Listen("tcp", a)
	}
	addrs := map[string]string{"dir": must(filepath.Abs(*dir)), "cluster": *cluster, "pid": strconv.Itoa(os.Getpid())}
	fail := make(chan error, 8)
	serve := func(name, a string, f func(net.Listener) error) (string, error) {
		l, err := listen(a)
		if err != nil {
			return "", err
		}
		addrs[name] = l.Addr().String()
		go func() { fail <- f(l) }()
		return l.Addr().String(), nil
	}
	authAddr, err := serve("auth", *addr, srv.Serve)
	if err != nil {
		return err
	}
	c := &fake.Control{Server: srv, Renew: issue}
	if *proxy != "" || *alb != "" || *tunnel != "" {
		c.Proxy = &fake.Proxy{PKI: pki, Auth: authAddr, Version: *version, TLSRouting: !*noRouting}
		if *proxy != "" {
			if _, err := serve("proxy", *proxy, func(l net.Listener) error { return c.Proxy.Serve(l, false) }); err != nil {
				return err
			}
		}
		if *alb != "" {
			if _, err := serve("alb", *alb, func(l net.Listener) error { return c.Proxy.Serve(l, true) }); err != nil {
				return err
			}
		}
		if *tunnel != "" {
			if _, err := serve("ssh", *tunnel, c.Proxy.ServeSSH); err != nil {
				return err
			}
		}
	}
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	c.Quit = func() { stop <- os.Interrupt }
	if _, err := serve("ctrl", *ctrl, func(l net.Listener) error { return http.Serve(l, c.Handler()) }); err != nil {
		return err
	}
	if *renew > 0 {
		go func() {
			for range time.Tick(*renew) {
				if err := issue(); err != nil {
					log.Print("renew: ", err)
				}
			}
		}()
	}
	if *lateN > 0 {
		time.AfterFunc(*lateAfter, func() {
			y := time.Now().UTC().AddDate(0, 0, -1)
			store.Append(fake.AppendSpec{N: *lateN, At: time.Date(y.Year(), y.Month(), y.Day(), 23, 30, 0, 0, time.UTC), Chunks: 1})
			logf("%d late events of yesterday", *lateN)
		})
	}
	line, _ := json.Marshal(addrs)
	logf("ready %s", line)
	if *ready != "" {
		if err := fake.WriteAtomic(*ready, append(line, '\n'), 0o644); err != nil {
			return err
		}
	}
	select {
	case <-stop:
	case err := <-fail:
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	srv.Stop()
	out, _ := json.MarshalIndent(c.Stats(), "", "  ")
	fmt.Println(strings.TrimSpace(string(out)))
	return nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
