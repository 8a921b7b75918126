package waitgraph

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a look costs the client when many wait for one key, each in the context of another lock.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int64{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := New(&member{board: newBoard(), holder: 1}, b.Name, ignore)
			defer d.Close(context.Background())
			for i := range n {
				holds := []Lock{lock(i + 2)}
				w := &Watched{detector: d, wait: want(0, 1, i+2), holds: func() []Lock { return holds }, end: func(error) {}}
				processes.add(b.Name(), w)
				defer processes.remove(w)
				d.waits[w] = true
			}
			d.step()
			b.ReportAllocs()
			for b.Loop() {
				d.step()
			}
		})
	}
}

func TestDetector_Pace(t *testing.T) {
	t.Parallel()
	require.LessOrEqual(t, pace(2, time.Microsecond), 2*soon)
	require.GreaterOrEqual(t, pace(10_000, 0), 2*time.Second)
	require.GreaterOrEqual(t, pace(0, time.Second), 10*time.Second)
}
