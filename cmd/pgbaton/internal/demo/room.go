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

// Twelve workers want into a room for three, from four processes: a process for each would need more connections than
// a small server has to give away.
const (
	roomProcesses = 4
	roomEach      = 3
	roomPermits   = 3

	// roomStay is how long a worker is in the room.
	roomStay = 3 * time.Millisecond

	// withoutSemaphorePart and withSemaphorePart are the parts of a section's time; the first has a least, so
	// that processes that begin one after the other meet.
	withoutSemaphorePart  = 4
	withSemaphorePart     = 2
	withoutSemaphoreLeast = 400 * time.Millisecond
)

// roomName begins with the prefix by which the demo's semaphores are removed.
const roomName = semaphorePrefix + "room"

// Who enters or leaves says so in a transaction of its own, within its permit. So the table never shows more inside
// than there are, and knows nothing of semaphores.
const sqlEnterRoom = `
UPDATE pgbaton_demo.room
SET inside = inside + 1, peak = greatest(peak, inside + 1), visits = visits + 1`

const sqlLeaveRoom = `
UPDATE pgbaton_demo.room
SET inside = inside - 1`

const sqlClearRoom = `
UPDATE pgbaton_demo.room
SET inside = 0, peak = 0, visits = 0`

const sqlReadRoom = `
SELECT inside, peak, visits
FROM pgbaton_demo.room`

// room is what the table shows.
type room struct {
	inside, peak, visits int
}

func readRoom(ctx context.Context, pool *pgxpool.Pool) (room, error) {
	var r room
	if err := pool.QueryRow(ctx, sqlReadRoom).Scan(&r.inside, &r.peak, &r.visits); err != nil {
		return room{}, fmt.Errorf("read room: %w", err)
	}
	return r, nil
}

// visitRoom is the job of a process: its workers go into the room and out again, at the same time, over and over.
func (b *kit) visitRoom(ctx context.Context) error {
	visit := b.stay
	if b.job.Locked {
		semaphore, err := b.client.Semaphore(ctx, roomName, roomPermits)
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

// together lets the workers of a process visit the room once each, and returns the times of those who did.
func together(ctx context.Context, visit func(context.Context) error) (times []time.Duration, err error) {
	var workers sync.WaitGroup
	var mu sync.Mutex
	for range roomEach {
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

// stay goes into the room and out again, the latter also when the worker is dismissed meanwhile.
func (b *kit) stay(ctx context.Context) error {
	if _, err := b.pool.Exec(ctx, sqlEnterRoom); err != nil {
		return fmt.Errorf("enter the room: %w", err)
	}
	pause(ctx, roomStay)
	if _, err := b.pool.Exec(context.WithoutCancel(ctx), sqlLeaveRoom); err != nil {
		return fmt.Errorf("leave the room: %w", err)
	}
	return nil
}

// crowding is what the workers made of the room.
type crowding struct {
	row
	room
}

func crowdRoom(ctx context.Context, s *stage) (outcome, error) {
	length := max(s.options.duration/withoutSemaphorePart, withoutSemaphoreLeast)
	without, err := s.fillRoom(ctx, titleRoomWithoutSemaphore, false, length)
	if err != nil {
		return outcome{}, err
	}
	with, err := s.fillRoom(ctx, titleRoomWithSemaphore, true, s.options.duration/withSemaphorePart)
	if err != nil {
		return outcome{}, err
	}
	return judgeRoom(without, with), nil
}

func judgeRoom(without, with crowding) outcome {
	const workers = roomProcesses * roomEach
	o := outcome{rows: []row{without.row, with.row}}
	o.failOnErrors(without.row)
	o.failOnErrors(with.row)
	if without.peak <= roomPermits {
		o.fail("Without a semaphore at most %d workers were at work at the same time, so this run proved nothing. Try more "+
			"time (-duration).", without.peak)
	} else {
		o.see("Without a semaphore up to %d of %d workers were at work at the same time.", without.peak, workers)
	}
	switch {
	case with.mutations == 0:
		o.fail("With the semaphore nobody got to work, so this run proved nothing. Try more time (-duration).")
	case with.peak > roomPermits:
		o.fail("With a semaphore of %d permits, %d workers were at work at the same time. That must never happen: please "+
			"report it.", roomPermits, with.peak)
	case with.errors == 0 && (with.inside != 0 || with.lost != 0):
		o.fail("At the end %d workers were still counted as at work, and %d visits were not counted.", with.inside, with.lost)
	default:
		o.see("With a semaphore of %d permits, in all processes together, never more than %d were, in %s visits; a visit, "+
			"with the wait for a permit, took %s at most.",
			roomPermits, with.peak, formatCount(with.mutations), formatTime(with.times.longest))
	}
	return o
}

// fillRoom lets the workers of all processes visit the room for a while.
func (s *stage) fillRoom(ctx context.Context, title string, guarded bool, length time.Duration) (crowding, error) {
	if _, err := s.pool.Exec(ctx, sqlClearRoom); err != nil {
		return crowding{}, fmt.Errorf("clear the room: %w", err)
	}
	jobs := make([]job, roomProcesses)
	for i := range jobs {
		jobs[i] = job{Kind: jobVisit, Locked: guarded, Duration: length}
	}
	total, elapsed, err := s.perform(ctx, jobs)
	if err != nil {
		return crowding{}, err
	}
	seen, err := readRoom(ctx, s.pool)
	return crowding{room: seen, row: row{
		title:     title,
		mutations: len(total.Mutations),
		lost:      lostUpdates(len(total.Mutations), seen.visits, total.Errors),
		errors:    total.Errors,
		problem:   total.Problem,
		times:     summarize(total.Mutations),
		elapsed:   elapsed,
	}}, err
}
