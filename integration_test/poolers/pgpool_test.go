package poolers

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// allReads has Pgpool-II send every SELECT to a standby, whatever functions it calls.
const allReads = "read_only_function_list = '.*'"

// pair is a primary with a database, its standby, and Pgpool-II in front of both.
type pair struct {
	server           *pgserver.Server
	primary, standby string // of the database
	through          string
	standbyPort      string
}

func newPair(t *testing.T, settings ...string) *pair {
	t.Helper()
	server := lab.OwnServer(t, nil)
	standby := lab.StandbyOf(t, server, testkit.Connect(t, server.URL())).Start(t)
	p := &pair{server: server, primary: lab.DatabaseOn(t, server)}
	schemaOf(t, p.primary)
	p.replay(t)
	database, err := url.Parse(p.primary)
	require.NoError(t, err)
	other, err := url.Parse(standby)
	require.NoError(t, err)
	other.Path = database.Path
	p.standby, p.standbyPort = other.String(), other.Port()
	p.through = lab.Pgpool(t, p.primary, p.standby, settings...)
	return p
}

// replay waits until the standby has all that the primary has.
func (p *pair) replay(t *testing.T) {
	t.Helper()
	testkit.WaitFor(t, testkit.Connect(t, p.server.URL()),
		"SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_flush_lsn())")
}

// database makes another database, and returns its URLs on the primary and through Pgpool-II.
func (p *pair) database(t *testing.T) (primary, through string) {
	t.Helper()
	primary = lab.DatabaseOn(t, p.server)
	p.replay(t)
	direct, err := url.Parse(primary)
	require.NoError(t, err)
	pooled, err := url.Parse(p.through)
	require.NoError(t, err)
	pooled.Path = direct.Path
	return primary, pooled.String()
}

// TestPgpool_Balances is the control: reads go to the standby, and where functions count as reads so does a lock, which
// excludes nobody on the primary.
func TestPgpool_Balances(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{"by volatility": nil, "all functions read": {allReads}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, settings...)
			pooled, direct := testkit.Connect(t, p.through), testkit.Connect(t, p.primary)
			require.Equal(t, p.standbyPort, testkit.Value[string](t, pooled, "SELECT current_setting('port')"))
			const lock = "SELECT pg_try_advisory_lock(1)"
			require.True(t, testkit.Value[bool](t, pooled, lock))
			require.Equal(t, settings != nil, testkit.Value[bool](t, direct, lock), "granted twice")
		})
	}
}

// A lock statement that is sent to the standby does not count as a grant.
func TestPgpool_AcquireTx(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{"by volatility": nil, "all functions read": {allReads}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, settings...)
			pool := onePool(t, p.through, 2)
			defer pool.Close()
			key := pgbaton.Name("k")
			direct, err := testkit.Connect(t, p.primary).Begin(t.Context())
			require.NoError(t, err)
			first, err := pgbaton.AcquireTx(t.Context(), direct, key)
			require.NoError(t, err)
			acquire := func(before string) (token pgbaton.Token, err error) {
				err = inTx(t.Context(), pool, func(ctx context.Context, tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, before); err != nil {
						return err
					}
					token, err = pgbaton.AcquireTx(ctx, tx, key, &pgbaton.LockOpts{Wait: pgbaton.NoWait})
					return err
				})
				return token, err
			}
			const (
				read  = "SELECT"
				wrote = "UPDATE counter SET value = 0 WHERE id = 0"
			)
			wants := pgbaton.ErrNotAcquired
			if settings != nil {
				wants = pgbaton.ErrStandby
			}
			_, err = acquire(read)
			require.ErrorIs(t, err, wants)
			t.Log(err)
			_, err = acquire(wrote) // after a write a transaction stays on the primary
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			require.NoError(t, direct.Commit(t.Context()))
			token, err := acquire(wrote)
			require.NoError(t, err)
			require.Greater(t, token, first)
		})
	}
}

// Rows keep what was promised while reads are balanced to a standby that lags: an operation whose read is old does not write, or
// tries again.
func TestPgpool_Rows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings []string
		ops      []operation
	}{
		"by volatility":      {nil, operations},
		"all functions read": {[]string{allReads}, operations[:4]}, // AcquireTx is refused there
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, c.settings...)
			l := newLoad(t, p.through, 24, c.ops)
			l.requireProgress("the start")
			standby := testkit.Connect(t, p.standby)
			rounds := testkit.Brief(5, 2)
			for range rounds {
				testkit.Exec(t, standby, "SELECT pg_wal_replay_pause()")
				time.Sleep(50 * time.Millisecond) // it falls behind
				testkit.Exec(t, standby, "SELECT pg_wal_replay_resume()")
				l.requireProgress("a lag")
			}
			require.Empty(t, l.end())
			requireCounts(t, p.primary, l.tallies)
		})
	}
}

// A client excludes others behind Pgpool-II in so far as all of its statements go to the primary, and is refused elsewhere, be its
// locks those of sessions or leases.
func TestPgpool_Client(t *testing.T) {
	t.Parallel()
	const toPrimary = "app_name_redirect_preference_list = 'pgbaton.*:primary'"
	sessions := &pgbaton.Config{Engine: pgbaton.EngineSession, SessionPooler: true, TTL: heldTTL}
	for name, c := range map[string]struct {
		settings []string
		works    bool
	}{
		"by volatility":                          {nil, true},
		"all functions read":                     {[]string{allReads}, false},
		"all functions read, but to the primary": {[]string{allReads, toPrimary}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, c.settings...)
			_, err := pgbaton.Open(t.Context(), p.through, &pgbaton.Config{Engine: pgbaton.EngineSession})
			require.ErrorIs(t, err, pgbaton.ErrPooler)
			for engine, cfg := range map[string]*pgbaton.Config{"session": sessions, "lease": {TTL: heldTTL}} {
				primary, through := p.database(t)
				client, err := pgbaton.Open(t.Context(), through, cfg)
				if err == nil {
					t.Cleanup(func() { _ = client.Close(context.Background()) })
				}
				if !c.works && err == nil {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					_, err = client.Acquire(ctx, pgbaton.Name("k"))
				}
				if !c.works {
					t.Logf("%s: %v", engine, err)
					// What takes leases writes, and a standby refuses that in its own words.
					require.True(t, errors.Is(err, pgbaton.ErrStandby) || engine == "lease" && pgerr.Code(err) == pgerr.ReadOnly, "%s: %v", engine, err)
					continue
				}
				require.NoError(t, err, engine)
				found, err := client.Diagnose(t.Context())
				require.NoError(t, err)
				require.Equal(t, engine, found.Engine)
				requireExcludes(t, client, primary)
				require.NoError(t, client.Close(t.Context()))
			}
		})
	}
}

// heldTTL is short, so that a lock outlives it in a test, and longer than a machine keeps a process from its signs of life.
const heldTTL = 5 * time.Second

// requireExcludes makes sure that a client excludes one that is connected to the primary itself, for longer than its TTL: signs of life
// that went to the standby would not keep its session there.
func requireExcludes(t *testing.T, client *pgbaton.Client, primary string) {
	t.Helper()
	key := pgbaton.Name("k")
	lock, err := client.Acquire(t.Context(), key)
	require.NoError(t, err)
	direct, err := pgbaton.Open(t.Context(), primary, nil) // of the engine that the lock has recorded
	require.NoError(t, err)
	tries := 0
	for end := time.Now().Add(2 * heldTTL); time.Now().Before(end) && lock.Err() == nil; time.Sleep(50 * time.Millisecond) {
		other, err := direct.TryAcquire(t.Context(), key)
		if err == nil {
			require.ErrorIs(t, lock.Err(), pgbaton.ErrLost, "granted elsewhere, and its holder was not told")
			require.NoError(t, other.Release(t.Context()))
			break
		}
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		tries++
	}
	testkit.Figure(t, "held through Pgpool-II for %d tries of another client, then: %v", tries, lock.Release(t.Context()))
	require.NoError(t, direct.Close(t.Context()))
}
