package locks

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// lines is what a client has written into its log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.buf.String()), "\n")
}

// A client that uses everything goes through restarts for some seconds. Its log says so in a few lines, of which none
// speaks of what the library is made of.
func TestServer_RestartInTheLog(t *testing.T) {
	t.Parallel()
	server := lab.OwnServer(t, nil)
	dsn := testkit.MigratedOn(t, server.URL())
	log := &lines{}
	ctx, cancel := context.WithTimeout(t.Context(), lab.Hang)
	defer cancel()
	client, err := pgbaton.Open(ctx, dsn, &pgbaton.Config{TTL: 3 * time.Second, Engine: testclient.Engine(), Logger: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	other, err := pgbaton.Open(ctx, dsn, &pgbaton.Config{Engine: testclient.Engine()})
	require.NoError(t, err)
	defer other.Close(context.Background())

	var users sync.WaitGroup
	led := make(chan pgbaton.Token, 100)
	users.Go(func() {
		_ = client.Lead(ctx, "leader", func(ctx context.Context, term *pgbaton.Lock) error {
			led <- term.Token()
			<-ctx.Done()
			return nil
		})
	})
	<-led
	s, err := client.Semaphore(ctx, "permits", 1)
	require.NoError(t, err)
	_, err = s.Acquire(ctx, 1)
	require.NoError(t, err)
	_, err = client.Acquire(ctx, pgbaton.Name("held"))
	require.NoError(t, err)
	_, err = other.Acquire(ctx, pgbaton.Name("theirs"))
	require.NoError(t, err)
	users.Go(func() {
		if lock, err := client.Acquire(ctx, pgbaton.Name("theirs")); err == nil {
			_ = lock.Release(ctx)
		}
	})
	time.Sleep(200 * time.Millisecond) // the waiter has left for the server's queue

	for range 5 {
		require.NoError(t, server.Restart(ctx, "fast"))
		time.Sleep(500 * time.Millisecond) // to be connected when the next one comes
	}
	<-led
	_, err = s.Acquire(ctx, 1)
	require.NoError(t, err)
	require.NoError(t, client.Close(context.Background()))
	users.Wait()

	written := log.all()
	t.Log(strings.Join(written, "\n"))
	require.LessOrEqual(t, len(written), 16)
	for _, line := range written {
		message, _, _ := strings.Cut(line, "error=")
		for _, inside := range []string{"link", "session", "ledger", "waiting session", "waitroom", "desk"} {
			require.NotContains(t, message, inside)
		}
	}
}
