// Package handover measures how long a permit that somebody waits for lies idle: from the moment in which its
// holder releases it until the next one has it. Holders are processes of their own, as they are in a service.
package handover

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton/benchmarks/internal/peer"
)

// Job is what each process does: so many goroutines acquire, hold, release and rest, over and over.
type Job struct {
	Peer     string        `json:"peer"`
	At       peer.Servers  `json:"at"`
	Name     string        `json:"name"`
	Capacity int           `json:"capacity"`
	Each     int           `json:"each"` // goroutines
	Hold     time.Duration `json:"hold"` // at least, and half as long again at the most
	Rest     time.Duration `json:"rest"`
	For      time.Duration `json:"for"`
}

// Grant is what a goroutine did with one permit; times are CLOCK_MONOTONIC, which all processes share.
type Grant struct {
	Called   int64 `json:"called"`
	Got      int64 `json:"got"`
	Released int64 `json:"released"` // when release was called
}

func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux and macOS have it
	}
	return ts.Nano()
}

// run does the job on a client.
func (j *Job) run(ctx context.Context, client peer.Client) ([]Grant, error) {
	var (
		group   sync.WaitGroup
		mu      sync.Mutex
		grants  []Grant
		failure error
		end     = time.Now().Add(j.For)
	)
	for range j.Each {
		group.Go(func() {
			for time.Now().Before(end) {
				g, err := j.once(ctx, client)
				mu.Lock()
				if err != nil {
					failure = err
					mu.Unlock()
					return
				}
				grants = append(grants, g)
				mu.Unlock()
				time.Sleep(j.Rest)
			}
		})
	}
	group.Wait()
	return grants, failure
}

func (j *Job) once(ctx context.Context, client peer.Client) (Grant, error) {
	g := Grant{Called: now()}
	release, err := client.Acquire(ctx, j.Name)
	if err != nil {
		return g, err
	}
	g.Got = now()
	time.Sleep(j.Hold + rand.N(j.Hold/2)) //nolint:gosec // no secret
	g.Released = now()
	return g, release(ctx)
}
