package pgbatonui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// showcase is a reading that has everything in it.
func showcase(at time.Time) *reading {
	ago := func(d time.Duration) time.Time { return at.Add(-d) }
	held := func(kind, name, client string, age time.Duration, token pgbaton.Token) pgbaton.LockInfo {
		return pgbaton.LockInfo{
			State: stateHeld, Kind: kind, Name: name, Key: pgbaton.Name(name), Permits: 1, Token: token, Since: ago(age), Client: client,
			Host: "node-" + client[len(client)-1:], Process: 1, Holder: int64(token), Session: 4000 + int(token%97),
		}
	}
	waits := func(kind, name, client string, age time.Duration, behind ...int) pgbaton.LockInfo {
		l := held(kind, name, client, age, 0)
		l.State, l.BlockedBy = "waiting", behind
		return l
	}
	locks := []pgbaton.LockInfo{
		held("lock", "invoice/42", "billing-2", 194*time.Second, 892965782417128),
		waits("lock", "invoice/42", "billing-1", 171*time.Second, 0),
		waits("lock", "invoice/42", "billing-3", 58*time.Second, 0),
		held("lock", "account/7", "billing-1", 180*time.Second, 892965782417160),
		waits("lock", "account/7", "ledger-1", 44*time.Second, 3),
		held("lock", "report/2026-11", "reports-1", 9*time.Minute, 892965782417192),
		held("lock", "tenant/acme", "imports-1", 41*time.Second, 892965782417224),
		held("lock", "tenant/acme", "imports-2", 37*time.Second, 892965782417225),
		held(kindOnce, "nightly-cleanup", "jobs-1", 26*time.Second, 892965782417288),
		held(kindTerm, "scheduler", "jobs-1", 26*time.Hour, 892965781000032),
		waits(kindTerm, "scheduler", "jobs-2", 26*time.Hour, 9),
		waits(kindTerm, "scheduler", "jobs-3", 3*time.Hour, 9),
		held(kindTerm, "outbox", "jobs-2", 3*time.Hour, 892965782000064),
		held(kindPermit, "partner-api", "billing-1", 4*time.Second, 892965782417320),
		held(kindPermit, "partner-api", "billing-2", 3*time.Second, 892965782417352),
		held(kindPermit, "render", "reports-1", 12*time.Second, 892965782417384),
		waits(kindPermit, "partner-api", "billing-3", 2*time.Second, 13, 14),
		{State: stateHeld, Kind: "lock", Key: pgbaton.ID(7240291903), Application: "golang-migrate", Session: 4113, Permits: 1},
	}
	locks[3].BlockedBy = []int{1}
	locks[6].Shared, locks[7].Shared = true, true
	locks[13].Permits, locks[14].Permits = 3, 2
	return &reading{
		at: at, now: at, took: 4 * time.Millisecond, database: "shop", operator: true, missing: map[string]string{}, locks: locks,
		semaphores: []semaphore{{"partner-api", 5, 0}, {"render", 8, 7}, {"thumbnails", 16, 16}},
		runs: []run{
			{name: "nightly-cleanup", began: ago(26 * time.Second), window: 23 * time.Hour},
			{name: "invoices-due", began: ago(3 * time.Hour), ended: ago(179 * time.Minute), window: 24 * time.Hour},
			{name: "rates", began: ago(70 * time.Minute), ended: ago(69 * time.Minute), window: time.Hour, failed: true, err: "fetch rates: 503 Service Unavailable"},
		},
		losses:   []loss{{row: row{id: 1}, seen: ago(6 * time.Minute), what: "lock invoice/17", whom: "billing-4"}},
		freeings: []freeing{{at: ago(2 * time.Hour), by: "oncall", reason: "hung in a download", client: "imports-2", kind: "lock", name: "tenant/initech", said: "freed"}},
		findings: []Finding{{"idle transactions", levelWarning, "A session of role report has had a transaction open for 22m.", "Find out what it waits for, or end it: SELECT pg_terminate_backend(4098);"}},
		diagnosis: pgbaton.Diagnosis{
			Server: "18.4", Schema: 16, Engine: "session", Pooler: "none", TTL: 15 * time.Second, MaxConns: 4, Conns: 2,
			Protections: map[string]string{"idle_session_timeout": "15s", "tcp_user_timeout": "13s"},
		},
	}
}

// shown is a handler of the showcase, with a past.
func shown(t *testing.T, cfg Config) *Handler {
	t.Helper()
	h := newHandler(nil, cfg, func(context.Context) *reading { return showcase(time.Now()) })
	renderer := newRenderer(cfg.FreeToken != "")
	for age := span; age > 0; age -= grain {
		wave := 0.5 + 0.5*math.Sin(age.Minutes()*1.7)
		m := measures{held: 11 + int(7*wave), waiting: int(5 * wave * wave), took: time.Duration(3+4*wave) * time.Millisecond}
		if age < 4*time.Minute {
			m.longest = 3*time.Minute - age + 20*time.Second
		}
		if m.longest = max(m.longest, 0); m.waiting > 0 {
			m.longest = max(m.longest, time.Duration(20*wave)*time.Second)
		}
		if age < 11*time.Minute || age > 12*time.Minute { // when nobody watched
			renderer.history.add(time.Now().Add(-age), m)
		}
	}
	h.readings.make = func(_ context.Context, last *snapshot) *snapshot { return renderer.render(showcase(time.Now()), last) }
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// TestShowcase serves the showcase. With PGBATON_SHOWCASE it prints where, and goes on until its input ends: for a browser.
func TestShowcase(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(shown(t, Config{FreeToken: token, Hosts: []string{"127.0.0.1"}}))
	t.Cleanup(server.CloseClientConnections)
	if os.Getenv("PGBATON_SHOWCASE") != "" {
		fmt.Println(server.URL)
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	answer, err := http.Get(server.URL)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	for _, text := range []string{
		"invoice/42", "billing-2", "account/7", "2 standing by", "5 of 5", "nightly-cleanup", "503 Service Unavailable", "id:7240291903",
		"its session has ended", "hung in a download", "22m", "PostgreSQL 18.4", "golang-migrate", "shared",
	} {
		require.Contains(t, string(body), text)
	}
}

const token = "a token of the tests"

var errAway = errors.New("connection refused <now>")
