// Command refclient reads a whole audit log with Teleport's own client
// library, by each of its APIs, and compares what came with what the control
// endpoint of faketeleport says ought to.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gravitational/teleport/api/client"
	auditlogpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/auditlog/v1"
	"github.com/gravitational/teleport/api/types"
)

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type meter struct {
	name string
	t    time.Time
	c    time.Duration
}

func start(name string) meter { return meter{name, time.Now(), cpu()} }
func (m meter) end(n int, note string) {
	d, c := time.Since(m.t), cpu()-m.c
	fmt.Printf("%-16s %8d events  %8.3f s  %9.0f events/s  client CPU %.3f s (%.2f s per 100k) %s\n", m.name, n, d.Seconds(), float64(n)/d.Seconds(), c.Seconds(), c.Seconds()/float64(max(n, 1))*1e5, note)
}

var bad bool

func compare(name string, got, want map[string]int) {
	if want == nil {
		return
	}
	missing, extra := 0, 0
	for k, n := range want {
		if got[k] < n {
			missing += n - got[k]
		}
	}
	for k, n := range got {
		if n > want[k] {
			extra += n - want[k]
		}
	}
	if missing+extra > 0 {
		bad = true
		fmt.Printf("%-16s MISMATCH: %d missing, %d too many\n", name, missing, extra)
	} else {
		fmt.Printf("%-16s complete: every id as often as it should\n", name)
	}
}

func fetch(url string, f func(line string)) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		f(sc.Text())
	}
	return sc.Err()
}

func main() {
	log.SetFlags(0)
	var (
		addr     = flag.String("addr", "127.0.0.1:3025", "Auth or Proxy address")
		identity = flag.String("identity", "", "identity file")
		crt      = flag.String("crt", "", "client certificate (with -key and -cas) instead")
		key      = flag.String("key", "", "client key")
		cas      = flag.String("cas", "", "CA certificates")
		alpn     = flag.String("alpn-cluster", "", "dial teleport-auth@CLUSTER by ALPN")
		upgrade  = flag.Bool("upgrade", false, "with -alpn-cluster: by a connection upgrade")
		insecure = flag.Bool("insecure", false, "do not check the Proxy's web certificate")
		ops      = flag.String("ops", "ping,search,export,sessions", "what to do: ping, search, export, sessions, lock, oldsearch, oldsessions, rawsearch, rawexport (these two decode nothing)")
		days     = flag.Int("days", 30, "days back from today")
		limit    = flag.Int("limit", 0, "page size of the search (0: the server's own)")
		par      = flag.Int("par", 1, "chunks (and sessions) read at the same time")
		ctrl     = flag.String("ctrl", "", "control endpoint to compare with")
		retry    = flag.Int("retry", 0, "how often to go on after an error")
		timeout  = flag.Duration("timeout", 5*time.Minute, "limit for all of it")
	)
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()

	var c client.Credentials
	if *identity != "" {
		c = client.LoadIdentityFile(*identity)
	} else {
		c = client.LoadKeyPair(*crt, *key, *cas)
	}
	cfg := client.Config{
		Addrs: []string{*addr}, Credentials: []client.Credentials{c}, InsecureAddressDiscovery: *insecure,
		ALPNSNIAuthDialClusterName: *alpn, ALPNConnUpgradeRequired: *upgrade,
	}
	if *alpn != "" {
		cfg.DialInBackground = true // authConnect alone
	}
	t0 := time.Now()
	clt, err := client.New(ctx, cfg)
	if err != nil {
		log.Fatal("client.New: ", err)
	}
	defer clt.Close()
	fmt.Printf("connected in %v\n", time.Since(t0).Round(time.Millisecond))

	var want map[string]int
	sids := map[string]int{}
	if *ctrl != "" {
		want = map[string]int{}
		if err := fetch("http://"+*ctrl+"/uids", func(l string) { want[l]++ }); err != nil {
			log.Fatal(err)
		}
		if err := fetch("http://"+*ctrl+"/sessions", func(l string) {
			f := strings.Split(l, "\t")
			var n int
			fmt.Sscan(f[1], &n)
			sids[f[0]] = n
		}); err != nil {
			log.Fatal(err)
		}
	}
	now := time.Now().UTC()
	today := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC)
	from := today.AddDate(0, 0, -(*days - 1))
	tries := *retry
	again := func(err error) bool {
		if tries--; tries < 0 {
			log.Fatal("error: ", err)
		}
		fmt.Println("retry after:", strings.ReplaceAll(err.Error(), "\n", " "))
		time.Sleep(200 * time.Millisecond)
		return true
	}

	for _, op := range strings.Split(*ops, ",") {
		switch op {
		case "ping":
			p, err := clt.Ping(ctx)
			if err != nil {
				log.Fatal("ping: ", err)
			}
			fmt.Printf("ping: cluster %s version %s cloud %v\n", p.ClusterName, p.ServerVersion, p.GetServerFeatures().GetCloud())
		case "search", "oldsearch":
			m := start(op)
			got := map[string]int{}
			n, pages, cursor := 0, 0, ""
			for {
				var ids []string
				var next string
				var err error
				if op == "search" {
					evs, nx, e := clt.SearchUnstructuredEvents(ctx, from, now.Add(time.Hour), "default", nil, *limit, types.EventOrderAscending, cursor)
					for _, ev := range evs {
						ids = append(ids, ev.Id)
					}
					next, err = nx, e
				} else {
					evs, nx, e := clt.SearchEvents(ctx, from, now.Add(time.Hour), "default", nil, *limit, types.EventOrderAscending, cursor)
					for _, ev := range evs {
						ids = append(ids, ev.GetID())
					}
					next, err = nx, e
				}
				if err != nil && again(err) {
					continue
				}
				pages++
				n += len(ids)
				for _, id := range ids {
					got[id]++
				}
				if next == "" {
					break
				}
				cursor = next
			}
			m.end(n, fmt.Sprintf("in %d pages", pages))
			compare(op, got, want)
		case "export":
			m := start(op)
			got := map[string]int{}
			var mu sync.Mutex
			n, chunks := 0, 0
			sem := make(chan struct{}, *par)
			var wg sync.WaitGroup
			for d := from; !d.After(today); d = d.AddDate(0, 0, 1) {
			list:
				st := clt.GetEventExportChunks(ctx, &auditlogpb.GetEventExportChunksRequest{Date: timestamppb.New(d)})
				var ids []string
				for st.Next() {
					ids = append(ids, st.Item().Chunk)
				}
				if err := st.Done(); err != nil && again(err) {
					goto list
				}
				for _, id := range ids {
					chunks++
					sem <- struct{}{}
					wg.Go(func() {
						defer func() { <-sem }()
						cursor := ""
						mine := []string{}
						for {
							ev := clt.ExportUnstructuredEvents(ctx, &auditlogpb.ExportUnstructuredEventsRequest{Date: timestamppb.New(d), Chunk: id, Cursor: cursor})
							for ev.Next() {
								mine = append(mine, ev.Item().Event.Id)
								cursor = ev.Item().Cursor
							}
							err := ev.Done()
							if err == nil {
								break
							}
							mu.Lock()
							again(err)
							mu.Unlock()
						}
						mu.Lock()
						defer mu.Unlock()
						n += len(mine)
						for _, id := range mine {
							got[id]++
						}
					})
				}
			}
			wg.Wait()
			m.end(n, fmt.Sprintf("in %d chunks", chunks))
			compare(op, got, want)
		case "rawsearch", "rawexport":
			rawRead(ctx, clt, op, from, now.Add(time.Hour), today, *limit, *par)
		case "sessions", "oldsessions":
			m := start(op)
			n := 0
			for sid, wantN := range sids {
				have := 0
				var err error
				if op == "sessions" {
					evs, errs := clt.StreamUnstructuredSessionEvents(ctx, sid, 0)
				loop:
					for {
						select {
						case _, ok := <-evs:
							if !ok {
								break loop
							}
							have++
						case err = <-errs:
							break loop
						}
					}
				} else {
					evs, errs := clt.StreamSessionEvents(ctx, sid, 0)
				loop2:
					for {
						select {
						case _, ok := <-evs:
							if !ok {
								break loop2
							}
							have++
						case err = <-errs:
							break loop2
						}
					}
				}
				if err != nil || have != wantN {
					bad = true
					fmt.Printf("session %s: %d of %d events, %v\n", sid, have, wantN, err)
				}
				n += have
			}
			m.end(n, fmt.Sprintf("in %d sessions", len(sids)))
		case "lock":
			l, err := types.NewLock("refclient-lock", types.LockSpecV2{Target: types.LockTarget{User: "eve"}, Message: "by refclient"})
			if err == nil {
				err = clt.UpsertLock(ctx, l)
			}
			if err != nil {
				log.Fatal("lock: ", err)
			}
			fmt.Println("lock: done")
		default:
			log.Fatalf("unknown op %q", op)
		}
	}
	if bad {
		os.Exit(1)
	}
}
