package lockerr_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func TestEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.EqualError(t, lockerr.Ended(ctx, nil), "context canceled")
	shut := errors.New("shutting down")
	caused, end := context.WithCancelCause(t.Context())
	end(shut)
	away := errors.New("away")
	err := lockerr.Ended(caused, lockerr.NoConnection(away))
	require.EqualError(t, err, "context canceled: shutting down; there is no connection: away")
	for _, part := range []error{context.Canceled, shut, away} {
		require.ErrorIs(t, err, part)
	}
	require.NoError(t, lockerr.NoConnection(nil))
}
