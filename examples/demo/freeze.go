package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

const jobOutlive = "outlive"

const (
	frozenRounds = 3
	frozenTTL    = time.Second

	// freedWithin is what the server must keep to when a holder has fallen silent.
	freedWithin = frozenTTL + time.Second
)

// outlive is the worker: it waits for the lock, reads the salary, and writes it plus one when it is told to, with no
// further look at the lock: what it remembers is all that it goes by.
func (b *kit) outlive(ctx context.Context) error {
	if err := b.say(message{Event: eventWaiting}); err != nil {
		return err
	}
	resource := frozenResource(b.job.Employee)
	lock, err := b.client.Acquire(ctx, pgbaton.Name(resource))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }()
	if err := b.say(message{Event: eventGranted}); err != nil {
		return err
	}
	token := lock.Token()
	salary, err := readSalary(ctx, b.pool, b.job.Employee)
	if err != nil {
		return err
	}
	if err := b.say(message{Event: eventHolding, Salary: salary}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-b.told:
	}

	start := time.Now()
	err = pgbaton.InTx(ctx, b.pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		if b.job.Fenced {
			if err := pgbaton.Fence(ctx, tx, resource, token); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, sqlWriteSalary, b.job.Employee, salary+1)
		return err
	})
	switch {
	case err == nil:
		b.counts.Mutations = append(b.counts.Mutations, time.Since(start))
	case errors.Is(err, pgbaton.ErrStaleToken):
		b.counts.Refused++
	default:
		b.counts.add(counts{Errors: 1, Problem: cli.Explain(err).Error()})
	}
	return b.report(eventDone)
}

// frozenResource is what is locked, and fenced under the same name.
func frozenResource(id int64) string { return fmt.Sprintf("%s%d", fencePrefix, id) }

// aftermath is what a number of holders that were frozen and woken left.
type aftermath struct {
	row

	early int // grants to the next worker before the holder was frozen
	late  int // writes of woken holders that were refused
}

// freezeHolders shows both ways at the same time: most of it is waiting for leases to end.
func freezeHolders(ctx context.Context, s *stage) (outcome, error) {
	if !canFreeze {
		return outcome{seen: []string{"Left out: this system cannot freeze a process by SIGSTOP."}}, nil
	}
	if err := resetSalaries(ctx, s.pool); err != nil {
		return outcome{}, err
	}
	var (
		without, with       aftermath
		errWithout, errWith error
		both                sync.WaitGroup
	)
	both.Go(func() {
		without, errWithout = s.outlast(ctx, titleFrozenWithoutFence, job{Kind: jobOutlive, Employee: ada, TTL: frozenTTL},
			func(int) {})
	})
	both.Go(func() {
		with, errWith = s.outlast(ctx, titleFrozenWithFence, job{Kind: jobOutlive, Employee: grace, TTL: frozenTTL, Fenced: true},
			func(rounds int) { s.progress.update(float64(rounds)/frozenRounds, formatCount(rounds)+" frozen") })
	})
	both.Wait()
	if err := errors.Join(errWithout, errWith); err != nil {
		return outcome{}, err
	}
	return judgeFrozen(without, with), nil
}

func judgeFrozen(without, with aftermath) outcome {
	o := outcome{rows: []row{without.row, with.row}}
	o.failOnErrors(without.row)
	o.failOnErrors(with.row)
	longest := max(without.times.longest, with.times.longest)
	if early := without.early + with.early; early > 0 {
		o.fail("%d holders had lost the lock before they were frozen, so this run proved nothing. Is the machine very "+
			"busy?", early)
	}
	if longest > freedWithin {
		o.fail("After a freeze the next worker had to wait up to %s for the lock; at most %s was expected.",
			formatTime(longest), formatTime(freedWithin))
	}
	if without.lost > 0 {
		o.see("Holders frozen by SIGSTOP: %d. The server gave each lock to the next worker, %s after the freeze at most "+
			"(TTL %v), and then the holder was woken. Without a fence its late write covered the new one: %d of %d raises "+
			"were lost.", 2*frozenRounds, formatTime(longest), frozenTTL, without.lost, without.mutations)
	} else if without.errors == 0 {
		o.fail("Without a fence no late write covered a new one, so this run proved nothing.")
	}
	switch {
	case with.errors > 0:
	case with.lost != 0 || with.late != frozenRounds || with.mutations != frozenRounds:
		o.fail("With Fence, %d of %d late writes were refused, and %d of %d raises were lost. All must be refused and none "+
			"lost: please report it.", with.late, frozenRounds, with.lost, with.mutations)
	default:
		o.see("With Fence in the transaction, all %d late writes were refused with ErrStaleToken, and none of the new "+
			"holders' %d raises was lost.", with.late, with.mutations)
	}
	return o
}

// outlast freezes a holder, lets the next worker get the lock and write, and wakes the holder, a few times.
func (s *stage) outlast(ctx context.Context, title string, j job, progress func(rounds int)) (aftermath, error) {
	c := newCrew(ctx, s.options.database.ConnString())
	defer c.disband()
	var (
		result aftermath
		total  counts
		waits  []time.Duration
		start  = time.Now()
	)
	for round := range frozenRounds {
		got, err := c.outlastOne(2*round+1, j)
		if err != nil {
			return aftermath{}, fmt.Errorf("%s: %w", title, err)
		}
		if got.wait < 0 {
			result.early++
		}
		result.late += got.late.Refused
		waits = append(waits, got.wait)
		total.add(got.next)
		total.add(got.late)
		progress(round + 1)
	}
	elapsed := time.Since(start)
	salary, err := readSalary(ctx, s.pool, j.Employee)
	if err != nil {
		return aftermath{}, err
	}
	result.row = row{
		title:     title,
		mutations: len(total.Mutations),
		lost:      lostUpdates(len(total.Mutations), int(salary-firstSalary), total.Errors),
		refused:   total.Refused,
		errors:    total.Errors,
		problem:   total.Problem,
		times:     summarize(waits),
		elapsed:   elapsed,
	}
	return result, nil
}

// freeze is what one frozen holder left.
type freeze struct {
	wait       time.Duration // from the freeze to the next grant
	next, late counts        // of the next holder, and of the one that was woken
}

// outlastOne does it once, with two workers that do the same job.
func (c *crew) outlastOne(number int, j job) (freeze, error) {
	holder, err := c.startWaiting(number, j)
	if err != nil {
		return freeze{}, err
	}
	for _, what := range []string{eventGranted, eventHolding} {
		if _, err := c.await(what); err != nil {
			return freeze{}, err
		}
	}
	heir, err := c.startWaiting(number+1, j)
	if err != nil {
		return freeze{}, err
	}
	frozen := time.Now()
	if err := holder.freeze(); err != nil {
		return freeze{}, err
	}
	granted, err := c.await(eventGranted)
	if err != nil {
		return freeze{}, err
	}
	if _, err := c.await(eventHolding); err != nil {
		return freeze{}, err
	}
	next, err := c.finish(heir)
	if err != nil {
		return freeze{}, err
	}
	if err := holder.wake(); err != nil {
		return freeze{}, err
	}
	late, err := c.finish(holder)
	return freeze{wait: granted.at.Sub(frozen), next: next, late: late}, err
}

// finish lets a worker write, and returns what became of it.
func (c *crew) finish(w *worker) (counts, error) {
	if err := w.goAhead(); err != nil {
		return counts{}, err
	}
	done, err := c.await(eventDone)
	w.over = true
	return done.counts, err
}
