package migrate_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Databases of other encodings than UTF8 are migrated, and every feature works in them, with a name of their own
// characters, whatever client_encoding the URL asks for.
func TestMigrate_Encodings(t *testing.T) {
	t.Parallel()
	for encoding, name := range map[string]string{
		"LATIN1": "größe", "KOI8R": "ключ", "EUC_JP": "鍵", "WIN1251": "ключ", "SQL_ASCII": "größe", "UTF8": "größe 鍵",
	} {
		for _, client := range testkit.Brief([]string{"", encoding}, []string{encoding}) {
			t.Run(encoding+"/"+client, func(t *testing.T) {
				t.Parallel()
				dsn := encoded(t, encoding)
				url := dsn
				if client != "" {
					url = testkit.With(t, dsn, "client_encoding", client)
				}
				require.NoError(t, pgbaton.Migrate(t.Context(), url))
				conn := testkit.Connect(t, dsn)
				require.Equal(t, encoding, testkit.Value[string](t, conn, "SHOW server_encoding"))
				useEverything(t, url, dsn, name)
			})
		}
	}
}

// encoded makes a database with an encoding.
func encoded(t *testing.T, encoding string) string {
	t.Helper()
	dsn := testkit.Empty(t)
	name := testkit.Value[string](t, testkit.Connect(t, dsn), "SELECT current_database()::text")
	testkit.Run(t, testkit.Server(t), "DROP DATABASE "+name+" WITH (FORCE)")
	testkit.Run(t, testkit.Server(t), "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C'")
	return dsn
}

// useEverything uses each feature by two clients, one of which knows nothing of the database's encoding.
func useEverything(t *testing.T, one, other, name string) {
	t.Helper()
	ctx := t.Context()
	a, b := open(t, one, name), open(t, other, name)

	lock, err := a.Acquire(ctx, pgbaton.Name(name))
	require.NoError(t, err)
	_, err = b.TryAcquire(ctx, pgbaton.Name(name))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	// A session that says what its bytes are computes the key that Go computes.
	conn := testkit.Connect(t, other)
	testkit.Exec(t, conn, "SET client_encoding = 'UTF8'")
	require.False(t, testkit.Value[bool](t, conn, "SELECT pg_try_advisory_lock(pgbaton.key($1))", name))
	require.NoError(t, lock.Release(ctx))
	shared, err := b.AcquireShared(ctx, pgbaton.Name(name))
	require.NoError(t, err)
	require.NoError(t, shared.Release(ctx))
	set, err := b.AcquireAll(ctx, pgbaton.Name(name), pgbaton.Name(name+"/2"))
	require.NoError(t, err)
	require.NoError(t, set.Release(ctx))

	one1, err := a.Semaphore(ctx, name, 1)
	require.NoError(t, err)
	two, err := b.Semaphore(ctx, name, 1)
	require.NoError(t, err)
	permit, err := one1.Acquire(ctx, 1)
	require.NoError(t, err)
	_, err = two.TryAcquire(ctx, 1)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	state, err := two.State(ctx)
	require.NoError(t, err)
	require.Len(t, state.Holders, 1)
	require.Equal(t, name, state.Holders[0].Client)
	require.NoError(t, permit.Release(ctx))

	inTx(t, conn, func(tx pgx.Tx) {
		_, err := pgbaton.AcquireTx(ctx, tx, pgbaton.Name(name))
		require.NoError(t, err)
		require.NoError(t, pgbaton.Fence(ctx, tx, "of "+name, 64))
	})
	inTx(t, conn, func(tx pgx.Tx) {
		err := pgbaton.Fence(ctx, tx, "of "+name, 63)
		var stale *pgbaton.StaleTokenError
		require.ErrorAs(t, err, &stale)
		require.Equal(t, "of "+name, stale.Resource)
	})

	ran := 0
	job := func(context.Context, *pgbaton.Lock) error { ran++; return nil }
	require.NoError(t, a.Once(ctx, "once "+name, time.Hour, job))
	var notDue *pgbaton.NotDueError
	require.ErrorAs(t, b.Once(ctx, "once "+name, time.Hour, job), &notDue)
	require.Equal(t, 1, ran)

	useLeader(t, a, b, name)
	useRows(t, conn, name)
	requireDeadlockFound(t, a, b, name)
}

func open(t *testing.T, dsn, name string) *pgbaton.Client {
	t.Helper()
	client, err := pgbaton.Open(t.Context(), dsn, &pgbaton.Config{Name: name})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close(context.Background())) })
	return client
}

func inTx(t *testing.T, conn *pgx.Conn, work func(pgx.Tx)) {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	work(tx)
	if tx.Conn().PgConn().TxStatus() == 'T' {
		require.NoError(t, tx.Commit(t.Context()))
		return
	}
	require.NoError(t, tx.Rollback(t.Context()))
}

func useLeader(t *testing.T, a, b *pgbaton.Client, name string) {
	t.Helper()
	ctx, resign := context.WithCancel(t.Context())
	leads := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- a.Lead(ctx, name, func(ctx context.Context, _ *pgbaton.Lock) error {
			close(leads)
			<-ctx.Done()
			return nil
		})
	}()
	<-leads
	require.Eventually(t, func() bool {
		_, err := b.Leader(t.Context(), name)
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	resign()
	if err := <-ended; err != nil {
		require.ErrorIs(t, err, context.Canceled)
	}
}

type account struct {
	Name    string
	Version int64
}

func useRows(t *testing.T, conn *pgx.Conn, name string) {
	t.Helper()
	ctx := t.Context()
	testkit.Exec(t, conn, `CREATE TABLE account (name text PRIMARY KEY, version bigint NOT NULL)`)
	testkit.Exec(t, conn, "INSERT INTO account VALUES ($1, 1)", name)
	key := pgbaton.Values{"name": name}
	inTx(t, conn, func(tx pgx.Tx) {
		row, err := pgbaton.LockRow[account](ctx, tx, pgx.Identifier{"account"}, key, nil)
		require.NoError(t, err)
		require.Equal(t, account{name, 1}, row)
	})
	version, err := pgbaton.UpdateVersion(ctx, conn, pgx.Identifier{"account"}, key, 1, pgbaton.Values{"name": name}, nil)
	require.NoError(t, err)
	require.Equal(t, int64(2), version)
}

// requireDeadlockFound has two clients wait for each other: what each waits for goes through a table.
func requireDeadlockFound(t *testing.T, a, b *pgbaton.Client, name string) {
	t.Helper()
	first, err := a.Acquire(t.Context(), pgbaton.Name(name+"/1"))
	require.NoError(t, err)
	second, err := b.Acquire(t.Context(), pgbaton.Name(name+"/2"))
	require.NoError(t, err)
	results := make(chan error, 2)
	wait := func(client *pgbaton.Client, held *pgbaton.Lock, key pgbaton.Key) {
		lock, err := client.Acquire(held.Context(), key)
		if err == nil {
			err = lock.Release(context.Background())
		}
		results <- errors.Join(err, held.Release(context.Background()))
	}
	go wait(a, first, second.Key())
	go wait(b, second, first.Key())
	err = errors.Join(<-results, <-results)
	require.ErrorIs(t, err, pgbaton.ErrDeadlock)
}
