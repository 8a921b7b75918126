package link

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/dbtest"
	"github.com/pgbaton/pgbaton/internal/session"
)

var (
	stmtEcho = Statement{Name: "echo", SQL: "SELECT $1::text, $2::bigint, NULL FROM generate_series(1, 2)"}
	stmtFail = Statement{Name: "fail", SQL: "SELECT 1 / $1::integer"}
	stmtXact = Statement{Name: "xact", SQL: "SELECT pg_current_xact_id()"}
)

func call(s *Statement, params ...string) *Op {
	op := &Op{Kind: Call, Call: s}
	for _, p := range params {
		op.Params = append(op.Params, []byte(p))
	}
	return op
}

func TestLink_Call(t *testing.T) {
	t.Parallel()
	f := open(t, 10*time.Second)
	for range 2 { // prepared, and known
		op := call(&stmtEcho, "it's {text}", "42")
		lock := &Op{Kind: Try, Key: advisory.Key{ID: 1}, Want: 1}
		before := time.Now()
		f.do(op, lock, &Op{Kind: Unlock, Key: advisory.Key{ID: 1}})
		require.NoError(t, op.Err)
		require.True(t, op.OK)
		require.WithinRange(t, op.Sent, before, time.Now())
		row := [][]byte{[]byte("it's {text}"), []byte("42"), nil}
		require.Equal(t, [][][]byte{row, row}, op.Rows)
		require.True(t, lock.OK)
	}
}

// One that fails does not fail the others of its transaction: they are told to run again.
func TestLink_CallFails(t *testing.T) {
	t.Parallel()
	f := open(t, 10*time.Second)
	for range 3 { // the failure may have prepared statements or not
		innocent, culprit, late := call(&stmtEcho, "a", "1"), call(&stmtFail, "0"), call(&stmtXact)
		f.do(innocent, culprit, late)
		require.ErrorContains(t, culprit.Err, "division by zero")
		require.NotErrorIs(t, culprit.Err, ErrRetry)
		require.ErrorIs(t, innocent.Err, ErrRetry)
		require.Nil(t, innocent.Rows)
		require.ErrorIs(t, late.Err, ErrRetry)

		again := call(&stmtXact)
		f.do(again)
		require.NoError(t, again.Err)
	}
	require.Empty(t, f.held())
}

// An error is an answer too: a link of which every statement fails lives all the same.
func TestLink_ErrorsAreAnswers(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	f := open(t, ttl)
	for end := time.Now().Add(3 * ttl / 2); time.Now().Before(end); time.Sleep(ttl / 20) {
		op := call(&stmtFail, "0")
		f.do(op)
		require.ErrorContains(t, op.Err, "division by zero")
	}
	require.True(t, f.Trusted(time.Now()))
}

// One that wants to be alone has a transaction of its own, in its turn.
func TestLink_CallAlone(t *testing.T) {
	t.Parallel()
	f := open(t, 10*time.Second)
	ops := []*Op{call(&stmtXact), call(&stmtXact), call(&stmtXact), call(&stmtXact), call(&stmtXact)}
	ops[2].Alone = true
	f.do(ops...)
	xact := func(i int) string { return string(ops[i].Rows[0][0]) }
	require.Equal(t, xact(0), xact(1))
	require.NotEqual(t, xact(1), xact(2))
	require.NotEqual(t, xact(2), xact(3))
	require.Equal(t, xact(3), xact(4))
}

// Where another session may run each transaction, nothing stays prepared and nothing is unlocked at the end.
func TestLink_Pooled(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Migrated(t)
	_, cfg := dbtest.Through(t, dsn)
	dialer := &session.Dialer{Config: cfg, TTL: 3 * time.Second}
	s, err := dialer.DialPooled(t.Context())
	require.NoError(t, err)
	handler := newRecorder()
	l, err := New(t.Context(), s, 3*time.Second, handler)
	require.NoError(t, err)
	f := &fixture{Link: l, recorder: handler, t: t}
	for range 2 {
		op, other := call(&stmtEcho, "a", "1"), call(&stmtXact)
		f.do(op, other)
		require.NoError(t, errors.Join(op.Err, other.Err))
	}
	prepared := call(&Statement{Name: "prepared", SQL: "SELECT count(*) FROM pg_prepared_statements"})
	f.do(prepared)
	require.Equal(t, "0", string(prepared.Rows[0][0][:1]))
	time.Sleep(3 * time.Second) // it pings
	f.do(call(&stmtXact))
	require.NoError(t, l.Close(t.Context()))
}
