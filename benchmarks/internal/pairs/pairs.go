// Package pairs measures how many locks or permits a process can acquire and release in a second.
package pairs

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/benchmarks/internal/peer"
)

// Load is what is measured.
type Load struct {
	Goroutines int
	OneKey     bool // all goroutines want the same; otherwise each its own
	Capacity   int  // of a semaphore
	For        time.Duration
	Rounds     int
}

// patience is for the last acquires of a measurement; a peer that loses a wake-up ends it with an error.
const patience = 30 * time.Second

// Compare measures the peers by turns, so that whatever else the machine does hits them alike, and returns the
// median of each in pairs a second.
func Compare(ctx context.Context, at peer.Servers, load Load, names []string) (map[string]float64, error) {
	rates := map[string][]float64{}
	for range load.Rounds {
		for _, name := range names {
			rate, err := load.measure(ctx, name, at)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			rates[name] = append(rates[name], rate)
		}
	}
	medians := map[string]float64{}
	for name, all := range rates {
		slices.Sort(all)
		medians[name] = all[len(all)/2]
	}
	return medians, nil
}

func (l Load) measure(ctx context.Context, name string, at peer.Servers) (rate float64, err error) {
	client, err := peer.Open(ctx, name, at, l.Capacity)
	if err != nil {
		return 0, err
	}
	defer func() {
		if failed := client.Close(ctx); err == nil {
			err = failed
		}
	}()
	if _, err := l.run(ctx, client, l.For/5); err != nil { // opens connections, prepares statements
		return 0, err
	}
	return l.run(ctx, client, l.For)
}

func (l Load) run(ctx context.Context, client peer.Client, length time.Duration) (float64, error) {
	var (
		group   sync.WaitGroup
		mu      sync.Mutex
		total   int
		failure error
		start   = time.Now()
		end     = start.Add(length)
	)
	ctx, stop := context.WithTimeout(ctx, length+patience)
	defer stop()
	for i := range l.Goroutines {
		group.Go(func() {
			n, err := l.pairs(ctx, client, i, end)
			mu.Lock()
			defer mu.Unlock()
			total += n
			if err != nil {
				failure = err
			}
		})
	}
	group.Wait()
	return float64(total) / time.Since(start).Seconds(), failure
}

func (l Load) pairs(ctx context.Context, client peer.Client, number int, end time.Time) (n int, err error) {
	key := fmt.Sprint("pairs/", l.Capacity)
	if !l.OneKey {
		key += fmt.Sprint("/", number)
	}
	for ; time.Now().Before(end); n++ {
		release, err := client.Acquire(ctx, key)
		if err != nil {
			return n, err
		}
		if err := release(ctx); err != nil {
			return n, err
		}
	}
	return n, nil
}
