package journal

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestJournal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text := &lockedBuffer{}
		lines := func() []string {
			synctest.Wait()
			return strings.Split(strings.TrimSpace(text.take()), "\n")
		}
		j := New(slog.New(slog.NewTextHandler(text, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		})))
		for i := range 100 {
			j.Log(slog.LevelWarn, "lost", errors.New(string(rune('a'+i%26))))
		}
		j.Log(slog.LevelInfo, "opened", nil)
		require.Equal(t, []string{`level=WARN msg="pgbaton: lost" error=a`, `level=INFO msg="pgbaton: opened"`}, lines(),
			"the first of each kind")
		time.Sleep(quiet + 1)
		require.Equal(t, []string{`level=WARN msg="pgbaton: lost" error=v times=99`}, lines(), "the others, counted, with the last")
		j.Log(slog.LevelInfo, "opened", nil)
		require.Equal(t, []string{`level=INFO msg="pgbaton: opened"`}, lines(), "after a quiet time it is the first again")
		j.Log(slog.LevelWarn, "lost", errors.New("x"))
		require.Equal(t, []string{""}, lines(), "it was written a moment ago")
		j.Close()
		require.Equal(t, []string{`level=WARN msg="pgbaton: lost" error=x times=1`}, lines(), "what was counted is not lost")
		j.Log(slog.LevelInfo, "late", nil)
		require.Equal(t, []string{`level=INFO msg="pgbaton: late"`}, lines())
	})
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}
