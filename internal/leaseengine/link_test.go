package leaseengine

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A link without leases lives by its signs of life, and one with leases by its renewals alone.
func TestSilence(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Second, 15 * time.Second, time.Hour} {
		require.Less(t, 2*silence(ttl), span(ttl), "a sign of life may get lost")
		require.Greater(t, silence(ttl), ttl/renewals, "a renewal is a sign of life")
	}
}
