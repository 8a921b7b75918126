package pipeline

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/session"
)

// Through a pooler, an answer that was meant for another client is known for what it is, whatever it looks like.
func TestPipeline_ForeignAnswer(t *testing.T) {
	t.Parallel()
	for name, foreign := range map[string]string{
		"without rows": "SELECT 1 WHERE false",
		"alike":        "SELECT 3::bigint",
		"an error":     "SELECT 1 / 0",
		"nothing":      "",
		"two":          "SELECT 1; SELECT 2",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t, time.Minute, true)
			f.do(newCall(&stmtCount))
			f.sendBehindItsBack(foreign)
			f.Submit(newCall(&stmtCount))
			f.Attend()
			require.ErrorIs(t, f.waitLost(), session.ErrForeign)
		})
	}
}

// An error that any statement may meet is refused as one's own. If it was somebody else's, the answer after it shows that.
func TestPipeline_ForeignConflict(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, true)
	f.sendBehindItsBack("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$")
	first := newCall(&stmtCount)
	f.do(first)
	require.ErrorIs(t, first.err, ErrRetry)
	f.Submit(newCall(&stmtCount))
	f.Attend()
	require.ErrorIs(t, f.waitLost(), session.ErrForeign)
}

// sendBehindItsBack has the server answer what the pipeline has not sent.
func (f *fixture) sendBehindItsBack(sql string) {
	f.t.Helper()
	packet, err := (&pgproto3.Query{String: sql}).Encode(nil)
	require.NoError(f.t, err)
	_, err = f.conn.Write(packet)
	require.NoError(f.t, err)
}

// Through a pooler, one round trip is under way at a time.
func TestPipeline_OneAtATime(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, true)
	slow := Statement{Name: "slow", SQL: "SELECT pg_sleep(0.3)"}
	first, second := newCall(&slow), newCall(&stmtCount)
	f.Submit(first)
	f.Submit(second)
	f.mu.Lock()
	flight, waiting := len(f.flight), len(f.queue)
	f.mu.Unlock()
	if flight+waiting == 2 { // the first has not been answered yet
		require.Equal(t, 1, flight)
	}
	f.Attend()
	f.answer(first)
	f.answer(second)
	require.False(t, second.sent.Before(first.sent.Add(300*time.Millisecond)), "sent before the first was answered")
}
