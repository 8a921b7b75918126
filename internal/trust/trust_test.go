package trust_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/trust"
)

func TestSpan(t *testing.T) {
	t.Parallel()
	require.Equal(t, 9*time.Second, trust.Span(10*time.Second))
}
