package pipeline

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

var (
	stmtSay   = Statement{Name: "echo", SQL: "SELECT $1::text, $2::bigint, NULL FROM generate_series(1, 2)"}
	stmtFail  = Statement{Name: "fail", SQL: "SELECT 1 / $1::integer"}
	stmtXact  = Statement{Name: "xact", SQL: "SELECT pg_current_xact_id()"}
	stmtSleep = Statement{Name: "sleep", SQL: "SELECT pg_sleep(60)"}
	stmtCount = Statement{Name: "count", SQL: "SELECT count(*) FROM generate_series(1, 3)"}
)

// count takes the answer to stmtCount.
type count struct{ rows int }

func (c *count) Row([][]byte) error { c.rows++; return nil }

func TestPipeline_Calls(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, false)
	for range 2 { // prepared, and known
		echo, same, beside := newCall(&stmtSay, "it's {text}", "42"), newCall(&stmtXact), newCall(&stmtXact)
		answered, counted := make(chan error, 1), &count{}
		before := time.Now()
		f.Ask(&stmtCount, counted, func(err error) { answered <- err })
		f.do(echo, same, beside)
		require.NoError(t, errors.Join(echo.err, same.err, beside.err, <-answered))
		require.Equal(t, 1, counted.rows)
		require.WithinRange(t, echo.sent, before, time.Now())
		row := [][]byte{[]byte("it's {text}"), []byte("42"), nil}
		require.Equal(t, [][][]byte{row, row}, echo.rows)
		require.Equal(t, same.rows, beside.rows, "one transaction")
	}
}

// One that fails is told apart from the others of its round trip, and all of them can run again.
func TestPipeline_CallFails(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, false)
	repairs := 0
	f.repair = func(r *Repairer[*call], failed []*call) error {
		require.Len(t, failed, 3)
		if repairs++; repairs == 2 { // an operator who cancels hits the repair as well
			return &pgconn.PgError{Code: "57014"}
		}
		rows, err := r.Query("SELECT 'a', NULL")
		require.NoError(t, err)
		require.Equal(t, [][][]byte{{[]byte("a"), nil}}, rows)
		_, err = r.Query("SELECT 1/0")
		require.ErrorContains(t, err, "division by zero")
		rerun := newCall(&stmtXact)
		require.NoError(t, r.Run([]*call{rerun}))
		require.Len(t, rerun.rows, 1)
		require.False(t, chans.Closed(rerun.answered), "nobody is told")
		require.ErrorContains(t, r.Run([]*call{newCall(&stmtFail, "0")}), "division by zero")
		return nil
	}
	for range 3 { // the failure may have prepared statements or not
		innocent, culprit, late := newCall(&stmtSay, "a", "1"), newCall(&stmtFail, "0"), newCall(&stmtXact)
		f.do(innocent, culprit, late)
		require.True(t, culprit.culprit)
		for _, c := range []*call{innocent, culprit, late} {
			require.ErrorContains(t, c.err, "division by zero")
			require.Equal(t, c == culprit, c.culprit)
			require.Nil(t, c.rows)
		}
		again := newCall(&stmtXact)
		f.do(again)
		require.NoError(t, again.err)
	}
	require.Equal(t, 4, repairs)
}

// What rides along is told of the failure as well.
func TestPipeline_AsideFails(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, false)
	sleep, answered := newCall(&stmtSleep), make(chan error, 1)
	f.Ask(&stmtCount, &count{}, func(err error) { answered <- err })
	f.Attend()
	require.NoError(t, <-answered)
	f.Submit(sleep)
	f.Ask(&stmtCount, &count{}, func(err error) { answered <- err }) // in the next round trip
	f.Attend()
	cancel := func() {
		for !chans.Closed(sleep.answered) {
			testkit.Value[bool](t, f.admin, "SELECT pg_cancel_backend($1)", int32(f.pid)) //nolint:gosec // a pid
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	require.ErrorIs(t, sleep.err, ErrRetry)
	if err := <-answered; err != nil { // a cancel may have come late
		require.ErrorIs(t, err, ErrRetry)
	}
	f.Fail(errors.New("cut"))
	f.Ask(&stmtCount, &count{}, func(err error) { answered <- err })
	require.ErrorContains(t, <-answered, "cut")
}

// An error is an answer too: a pipeline of which every statement fails lives all the same.
func TestPipeline_ErrorsAreAnswers(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	f := open(t, ttl, false)
	for end := time.Now().Add(3 * ttl / 2); time.Now().Before(end); time.Sleep(ttl / 20) {
		c := newCall(&stmtFail, "0")
		f.do(c)
		require.ErrorContains(t, c.err, "division by zero")
	}
	require.True(t, f.Trusted(time.Now()))
}

// Where another session may run each transaction, nothing stays prepared.
func TestPipeline_Pooled(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, true)
	require.True(t, f.Pooled())
	for range 2 {
		c, other := newCall(&stmtSay, "a", "1"), newCall(&stmtXact)
		f.do(c, other)
		require.NoError(t, errors.Join(c.err, other.err))
	}
	prepared := newCall(&Statement{Name: "prepared", SQL: "SELECT count(*) FROM pg_prepared_statements"})
	f.do(prepared)
	require.Equal(t, "0", string(prepared.rows[0][0][:1]))
	time.Sleep(3 * time.Second) // it pings
	f.do(newCall(&stmtXact))
	require.NoError(t, f.Close(t.Context(), nil))
}

// An answer that lay unread for too long proves nothing, whether it is one or an error.
func TestPipeline_AnswerThatLayUnread(t *testing.T) {
	t.Parallel()
	for _, failed := range []*pgconn.PgError{nil, {Code: "22012"}} {
		f := open(t, time.Minute, false)
		c := newCall(&stmtXact)
		b := &batch[*call]{ops: []*call{c}, round: f.NewRound(), sent: time.Now().Add(-f.trustSpan()), err: failed}
		f.mu.Lock()
		f.flight = append(f.flight, b)
		f.mu.Unlock()
		require.Error(t, f.finish(b))
		require.ErrorContains(t, f.waitLost(), "lease expired")
		f.answer(c)
		require.ErrorContains(t, c.err, "lease expired")
		require.Error(t, f.finish(&batch[*call]{sent: time.Now()}), "after another has failed the pipeline")
	}
}

// A server that has become a standby, an answer that does not fit, and one that the owner does not like, end the pipeline.
func TestPipeline_Answers(t *testing.T) {
	t.Parallel()
	require.NoError(t, pulse{}.Row([][]byte{{0}}))
	require.ErrorIs(t, pulse{}.Row([][]byte{{1}}), lockerr.Standby)
	require.ErrorIs(t, pulse{}.Row([][]byte{{0}, {0}}), ErrProtocol)
	f := open(t, time.Minute, false)
	f.Ask(&Statement{Name: "standby", SQL: "SELECT true"}, pulse{}, nil)
	f.Attend()
	var loss *lockerr.LossError
	require.ErrorAs(t, f.waitLost(), &loss)
	require.Equal(t, lockerr.BecameStandby, loss.Reason)
}
