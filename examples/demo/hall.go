package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const jobVisit = "visit"

// Twelve workers want into a hall for three, from four processes: a process for each would need more connections than
// a small server has to give away.
const (
	hallProcesses = 4
	hallEach      = 3
	hallPermits   = 3

	// hallStay is how long a worker is in the hall.
	hallStay = 3 * time.Millisecond

	// withoutSemaphorePart and withSemaphorePart are the parts of a section's time; the first has a least, so
	// that processes that begin one after the other meet.
	withoutSemaphorePart  = 4
	withSemaphorePart     = 2
	withoutSemaphoreLeast = 400 * time.Millisecond
)

// hallName begins with the prefix by which the demo's semaphores are removed.
const hallName = semaphorePrefix + "hall"

// Who enters or leaves says so in a transaction of its own, within its permit. So the table never shows more inside
// than there are, and knows nothing of semaphores.
const sqlEnterHall = `
UPDATE pgbaton_demo.hall
SET inside = inside + 1, peak = greatest(peak, inside + 1), visits = visits + 1`

const sqlLeaveHall = `
UPDATE pgbaton_demo.hall
SET inside = inside - 1`

const sqlClearHall = `
UPDATE pgbaton_demo.hall
SET inside = 0, peak = 0, visits = 0`

const sqlReadHall = `
SELECT inside, peak, visits
FROM pgbaton_demo.hall`

// hall is what the table shows.
type hall struct {
	inside, peak, visits int
}

func readHall(ctx context.Context, pool *pgxpool.Pool) (hall, error) {
	var r hall
	if err := pool.QueryRow(ctx, sqlReadHall).Scan(&r.inside, &r.peak, &r.visits); err != nil {
		return hall{}, fmt.Errorf("read hall: %w", err)
	}
	return r, nil
}

// visitHall is the job of a process: its workers go into the hall and out again, at the same time, over and over.
func (b *kit) visitHall(ctx context.Context) error {
	visit := b.stay
	if b.job.Locked {
		semaphore, err := b.client.Semaphore(ctx, hallName, hallPermits)
		if err != nil {
			return err
		}
		visit = func(ctx context.Context) error {
			permit, err := semaphore.Acquire(ctx, 1)
			if err != nil {
				return err
			}
			return errors.Join(b.stay(ctx), permit.Release(ctx))
		}
	}
	return b.repeat(ctx, func(ctx context.Context) error {
		times, err := together(ctx, visit)
		b.counts.Mutations = append(b.counts.Mutations, times...)
		return err
	})
}

// together lets the workers of a process visit the hall once each, and returns the times of those who did.
func together(ctx context.Context, visit func(context.Context) error) (times []time.Duration, err error) {
	var workers sync.WaitGroup
	var mu sync.Mutex
	for range hallEach {
		workers.Go(func() {
			start := time.Now()
			failed := visit(ctx)
			mu.Lock()
			defer mu.Unlock()
			if failed == nil {
				times = append(times, time.Since(start))
			}
			err = errors.Join(err, failed)
		})
	}
	workers.Wait()
	return times, err
}

// stay goes into the hall and out again, the latter also when the worker is dismissed meanwhile.
func (b *kit) stay(ctx context.Context) error {
	if _, err := b.pool.Exec(ctx, sqlEnterHall); err != nil {
		return fmt.Errorf("enter the hall: %w", err)
	}
	pause(ctx, hallStay)
	if _, err := b.pool.Exec(context.WithoutCancel(ctx), sqlLeaveHall); err != nil {
		return fmt.Errorf("leave the hall: %w", err)
	}
	return nil
}

// crowding is what the workers made of the hall.
type crowding struct {
	row
	hall
}

func crowdHall(ctx context.Context, s *stage) (outcome, error) {
	length := max(s.options.duration/withoutSemaphorePart, withoutSemaphoreLeast)
	without, err := s.fillHall(ctx, titleHallWithoutSemaphore, false, length)
	if err != nil {
		return outcome{}, err
	}
	with, err := s.fillHall(ctx, titleHallWithSemaphore, true, s.options.duration/withSemaphorePart)
	if err != nil {
		return outcome{}, err
	}
	return judgeHall(without, with), nil
}

func judgeHall(without, with crowding) outcome {
	const workers = hallProcesses * hallEach
	o := outcome{rows: []row{without.row, with.row}}
	o.failOnErrors(without.row)
	o.failOnErrors(with.row)
	if without.peak <= hallPermits {
		o.fail("Without a semaphore at most %d workers were at work at the same time, so this run proved nothing. Try more "+
			"time (-duration).", without.peak)
	} else {
		o.see("Without a semaphore up to %d of %d workers were at work at the same time.", without.peak, workers)
	}
	switch {
	case with.mutations == 0:
		o.fail("With the semaphore nobody got to work, so this run proved nothing. Try more time (-duration).")
	case with.peak > hallPermits:
		o.fail("With a semaphore of %d permits, %d workers were at work at the same time. That must never happen: please "+
			"report it.", hallPermits, with.peak)
	case with.errors == 0 && (with.inside != 0 || with.lost != 0):
		o.fail("At the end %d workers were still counted as at work, and %d visits were not counted.", with.inside, with.lost)
	default:
		o.see("With a semaphore of %d permits, in all processes together, never more than %d were, in %s visits; a visit, "+
			"with the wait for a permit, took %s at most.",
			hallPermits, with.peak, formatCount(with.mutations), formatTime(with.times.longest))
	}
	return o
}

// fillHall lets the workers of all processes visit the hall for a while.
func (s *stage) fillHall(ctx context.Context, title string, guarded bool, length time.Duration) (crowding, error) {
	if _, err := s.pool.Exec(ctx, sqlClearHall); err != nil {
		return crowding{}, fmt.Errorf("clear the hall: %w", err)
	}
	jobs := make([]job, hallProcesses)
	for i := range jobs {
		jobs[i] = job{Kind: jobVisit, Locked: guarded, Duration: length}
	}
	total, elapsed, err := s.perform(ctx, jobs)
	if err != nil {
		return crowding{}, err
	}
	seen, err := readHall(ctx, s.pool)
	return crowding{hall: seen, row: row{
		title:     title,
		mutations: len(total.Mutations),
		lost:      lostUpdates(len(total.Mutations), seen.visits, total.Errors),
		errors:    total.Errors,
		problem:   total.Problem,
		times:     summarize(total.Mutations),
		elapsed:   elapsed,
	}}, err
}
