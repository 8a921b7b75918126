package contract

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Law 11: a client takes the engine that its ground allows, and is told why it cannot have another one.
func TestLaw11_WrongGroundIsRefused(t *testing.T) { run(t, 11, wrongGround) }

func wrongGround(s *site) {
	openWith := func(cfg pgbaton.Config) (*pgbaton.Client, error) {
		s.ops.Add(1)
		return pgbaton.Open(s.ctx, s.dsn, &cfg)
	}
	finds := func(engine pgbaton.Engine) {
		s.t.Helper()
		s.ops.Add(2)
		client := testclient.Open(s.t, s.dsn, &pgbaton.Config{})
		found, err := client.Diagnose(s.ctx)
		require.NoError(s.t, err)
		require.Equal(s.t, string(engine), found.Engine)
		s.close(s.ctx, client)
	}
	client, err := openWith(pgbaton.Config{Engine: pgbaton.EngineSession})
	if s.refused != nil {
		require.ErrorIs(s.t, err, s.refused)
		finds(pgbaton.EngineLease)
	} else {
		require.NoError(s.t, err)
		s.close(s.ctx, client)
		finds(pgbaton.EngineSession)
	}
	if errors.Is(s.refused, pgbaton.ErrPooler) {
		_, err = openWith(pgbaton.Config{Engine: pgbaton.EngineLease, TTL: 1900 * time.Millisecond})
		require.ErrorContains(s.t, err, "through a pooler the least is 2s")
	}
	s.release(s.acquire(s.open(pgbaton.Config{Name: "the first"}), pgbaton.Name("key"))) // records the engine
	finds(s.engine)
	for _, engine := range []pgbaton.Engine{pgbaton.EngineSession, pgbaton.EngineLease} {
		if engine == s.engine {
			continue
		}
		_, err = openWith(pgbaton.Config{Engine: engine})
		if s.refused == nil || !errors.Is(err, s.refused) {
			require.ErrorIs(s.t, err, pgbaton.ErrEngine)
			require.ErrorContains(s.t, err, "the first")
		}
	}
	bare, control := s.dsn, s.control
	testkit.Exec(s.t, control, "ALTER SCHEMA pgbaton RENAME TO elsewhere")
	s.ops.Add(1)
	_, err = pgbaton.Open(s.ctx, bare, &pgbaton.Config{Engine: s.engine})
	require.ErrorIs(s.t, err, pgbaton.ErrSchema)
	testkit.Exec(s.t, control, "ALTER SCHEMA elsewhere RENAME TO pgbaton") // for the client that is still open
}

// Law 12: the database's clock ends what expires, and nobody else's: with a TTL of an hour, what it says is over is
// somebody else's at once, and what it does not say so of is not.
func TestLaw12_TheDatabasesClock(t *testing.T) { run(t, 12, clocks) }

func clocks(s *site) {
	holder, other := s.open(pgbaton.Config{TTL: time.Hour}), s.open(pgbaton.Config{TTL: time.Hour})
	ctx, cancel := s.patient()
	defer cancel()
	s.ops.Add(1)
	ran := 0
	once := func(client *pgbaton.Client) error {
		s.ops.Add(1)
		return client.OnceWith(ctx, "job", time.Hour, &pgbaton.LockOpts{RetryFailed: true}, func(context.Context, *pgbaton.Lock) error {
			ran++
			return nil
		})
	}
	until := func(client *pgbaton.Client) {
		for before := ran; ran == before; {
			if err := once(client); err != nil {
				require.True(s.t, s.cut(err), "%v", err)
			}
		}
	}
	until(holder)
	require.ErrorIs(s.t, once(other), pgbaton.ErrNotAcquired)
	testkit.Exec(s.t, s.control, "UPDATE pgbaton.last_run SET ran_at = ran_at - interval '2 hours'")
	until(other)
	require.ErrorIs(s.t, once(holder), pgbaton.ErrNotAcquired)

	if s.engine != pgbaton.EngineLease {
		return // its locks end with a session
	}
	lock := s.acquire(holder, pgbaton.Name("lease"))
	ends := testkit.Value[float64](s.t, s.control,
		"SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM pgbaton.lease WHERE holder IS NOT NULL")
	require.LessOrEqual(s.t, ends, time.Hour.Seconds())
	require.Greater(s.t, ends, 0.0)
	testkit.Exec(s.t, s.control, "UPDATE pgbaton.lease SET expires_at = clock_timestamp() - interval '1 ms' WHERE holder IS NOT NULL")
	if s.refused == nil { // the holder shows by its session that it lives, and the clock may have jumped
		s.refuses(other, pgbaton.Name("lease"))
		require.NoError(s.t, lock.Err())
		s.release(lock)
		return
	}
	next := s.acquire(other, pgbaton.Name("lease"))
	require.Greater(s.t, next.Token(), lock.Token())
	s.release(next)
	require.ErrorIs(s.t, lock.Release(s.ctx), pgbaton.ErrLost)
}

// Law 13: whatever a name consists of, it is a value, and the search_path of a role or database means nothing.
func TestLaw13_NoInputIsSQL(t *testing.T) { run(t, 13, values) }

var hostile = []string{
	`'; DROP TABLE canary; --`, `"; DROP TABLE canary; --`, `\'; DROP TABLE canary; --`, `$$; DROP TABLE canary; $$`, "$1", "%s %d %n",
	"\t\r\n", "größe 🦭", "a\u202eb", strings.Repeat("x", 400), `{"a": [1]}`, "NULL", " ",
}

func values(s *site) {
	testkit.Exec(s.t, s.control, "CREATE TABLE canary (n int)")
	if !s.foreign {
		s.evil()
	}
	for _, text := range hostile {
		s.named(text)
	}
	s.ops.Add(2)
	client := s.open(pgbaton.Config{})
	_, err := client.Semaphore(s.ctx, "a\x00b", 1)
	require.Error(s.t, err)
	_, err = client.Semaphore(s.ctx, "\xff", 1)
	require.Error(s.t, err)
	require.Zero(s.t, testkit.Value[int](s.t, s.control, "SELECT count(*) FROM public.canary"), "it is there")
}

// evil puts a schema before all others in which things are not what they seem.
func (s *site) evil() {
	s.t.Helper()
	testkit.Exec(s.t, s.control, `CREATE SCHEMA evil;
		CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'evil'::text::timestamptz $$;
		CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'evil'::text::timestamptz $$;
		CREATE FUNCTION evil.equal(bigint, bigint) RETURNS boolean LANGUAGE sql AS $$ SELECT 'evil'::text::boolean $$;
		CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.equal)`)
	name := testkit.Value[string](s.t, s.control, "SELECT quote_ident(current_database())")
	testkit.Exec(s.t, s.control, "ALTER DATABASE "+name+" SET search_path = evil, pg_catalog")
}

// named uses a text as every kind of name.
func (s *site) named(text string) {
	s.t.Helper()
	client := s.open(pgbaton.Config{Name: text})
	ctx, cancel := s.patient()
	defer cancel()
	lock := s.acquire(client, pgbaton.Name(text))
	other, err := client.TryAcquire(ctx, pgbaton.Name(text+"'"))
	if err == nil {
		s.release(other)
	} else {
		require.True(s.t, s.cut(err), "%v", err)
	}
	s.release(lock)
	again := func(call func() error) {
		s.t.Helper()
		for {
			s.ops.Add(1)
			err := call()
			if err == nil {
				return
			}
			require.True(s.t, s.cut(err), "%q: %v", text, err)
		}
	}
	again(func() error {
		semaphore, err := client.Semaphore(ctx, text, 2)
		if err != nil {
			return err
		}
		permit, err := semaphore.Acquire(ctx, 1)
		if err != nil {
			return err
		}
		state, err := semaphore.State(ctx)
		if err == nil && len(state.Holders) > 0 {
			require.Equal(s.t, text, state.Holders[0].Client)
		}
		return errors.Join(err, permit.Release(ctx))
	})
	again(func() error {
		err := client.Once(ctx, text, time.Hour, func(context.Context, *pgbaton.Lock) error { return nil })
		if notDue := (*pgbaton.NotDueError)(nil); s.sudden && errors.As(err, &notDue) {
			return nil // the answer that it may run got lost
		}
		return err
	})
	leads, stop := context.WithCancel(ctx)
	defer stop()
	err = client.Lead(leads, text, func(context.Context, *pgbaton.Lock) error {
		stop()
		return nil
	})
	require.ErrorIs(s.t, err, context.Canceled)
}
