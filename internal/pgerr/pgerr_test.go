package pgerr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// libpqError has the methods of lib/pq's error.
type libpqError struct{ code, detail, position string }

func (e *libpqError) Error() string    { return "pq: " + e.code }
func (e *libpqError) SQLState() string { return e.code }

func (e *libpqError) Get(k byte) string {
	return map[byte]string{'D': e.detail, 'P': e.position}[k]
}

func TestTranslate(t *testing.T) {
	t.Parallel()
	for code, sentinel := range map[string]error{
		"55P03": lockerr.NotAcquired, "40001": lockerr.Conflict, "40P01": lockerr.Deadlock, "PB001": lockerr.StaleToken,
	} {
		for _, err := range []error{&pgconn.PgError{Code: code, Detail: "who"}, &libpqError{code: code, detail: "who"}} {
			translated := pgerr.Translate(fmt.Errorf("wrapped: %w", err))
			require.ErrorIs(t, translated, sentinel)
			require.ErrorIs(t, translated, err)
			require.Equal(t, translated, pgerr.Translate(translated))
			require.Equal(t, code == "40P01", translated.Error() != fmt.Sprintf("%v: wrapped: %v", sentinel, err))
		}
	}
	other := &pgconn.PgError{Code: "23505"}
	require.Equal(t, other, pgerr.Translate(other))
	require.NoError(t, pgerr.Translate(nil))
}

func TestPosition(t *testing.T) {
	t.Parallel()
	require.Equal(t, 7, pgerr.Position(&pgconn.PgError{Position: 7}))
	require.Equal(t, 7, pgerr.Position(&libpqError{position: "7"}))
	require.Zero(t, pgerr.Position(io.EOF))
}

func TestCommitUnknown(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		io.ErrUnexpectedEOF, context.DeadlineExceeded, errors.New("other"),
		&pgconn.PgError{Code: "57P01"}, &libpqError{code: "08006"}, &pgconn.PgError{Code: "40003"},
	} {
		require.True(t, pgerr.CommitUnknown(err), err)
	}
	for _, err := range []error{
		nil, &pgconn.PgError{Code: "40001"}, &libpqError{code: "23503"}, &pgconn.PgError{Code: "25P02"},
	} {
		require.False(t, pgerr.CommitUnknown(err), err)
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	const detail = `{"token": 5, "newest": 9, "resource": "a \"b\""}`
	for _, err := range []error{&pgconn.PgError{Code: "PB001", Detail: detail}, &libpqError{code: "PB001", detail: detail}} {
		stale, ok := pgerr.Stale(fmt.Errorf("wrapped: %w", err))
		require.True(t, ok)
		require.Equal(t, pgerr.StaleDetail{Resource: `a "b"`, Token: 5, Newest: 9}, stale)
	}
	stale, ok := pgerr.Stale(&pgconn.PgError{Code: "PB001", Detail: "not ours"})
	require.True(t, ok)
	require.Zero(t, stale)
	_, ok = pgerr.Stale(&pgconn.PgError{Code: "40001", Detail: detail})
	require.False(t, ok)
}
