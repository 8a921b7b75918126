package demo

import (
	"context"
	"errors"
	"time"

	"github.com/pgbaton/pgbaton"
)

const jobInherit = "inherit"

const (
	// heldFor is how long a holder holds before it is killed, so that the next worker surely waits.
	heldFor = 300 * time.Millisecond

	// grantWithin is what the next holder's grant must keep to.
	grantWithin = time.Second

	// uncommitted is what a holder adds in the transaction in which it is killed.
	uncommitted = 1_000_000_000
)

var legacyKey = pgbaton.Name("pgbaton_demo/legacy")

// inherit is the worker: it waits for the lock, reads the salary, commits one raise, and holds the lock in
// the middle of a second one, until it is killed or dismissed.
func (b *kit) inherit(ctx context.Context) error {
	if err := b.say(message{Event: eventWaiting}); err != nil {
		return err
	}
	lock, err := b.client.Acquire(ctx, legacyKey)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }()
	if err := b.say(message{Event: eventGranted}); err != nil {
		return err
	}
	salary, err := readSalary(ctx, b.pool, ada)
	if err != nil {
		return err
	}
	if _, err := b.pool.Exec(ctx, sqlWriteSalary, ada, salary+1); err != nil {
		return err
	}
	tx, err := b.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, sqlWriteSalary, ada, salary+uncommitted); err != nil {
		return err
	}
	if err := b.say(message{Event: eventHolding, Salary: salary}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-lock.Done():
		return lock.Err()
	}
}

// succession is what a chain of killed holders left.
type succession struct {
	holders int             // each committed one raise
	waits   []time.Duration // from each kill to the next grant
	wrong   int             // holders that read another salary than the last committed one
	early   int             // grants while another held the lock
	final   int64           // salary at the end
	elapsed time.Duration
}

func killHolders(ctx context.Context, s *stage) (outcome, error) {
	if err := resetSalaries(ctx, s.pool); err != nil {
		return outcome{}, err
	}
	result, err := s.succeed(ctx)
	if err != nil {
		return outcome{}, err
	}
	if result.final, err = readSalary(ctx, s.pool, ada); err != nil {
		return outcome{}, err
	}
	return judgeSuccession(result), nil
}

func judgeSuccession(got succession) outcome {
	r := row{
		title:     titleKilled,
		mutations: got.holders,
		lost:      lostUpdates(got.holders, int(got.final-firstSalary), 0),
		times:     summarize(got.waits),
		elapsed:   got.elapsed,
	}
	o := outcome{rows: []row{r}}
	if got.early > 0 {
		o.fail("%d workers got the lock while another held it. That must never happen: please report it.", got.early)
	}
	if got.wrong > 0 || r.lost != 0 {
		o.fail("%d workers read another salary than the last committed one, and the last salary is %d, not %d.",
			got.wrong, got.final, firstSalary+int64(got.holders))
	}
	if r.times.longest > grantWithin {
		o.fail("After a kill the next worker had to wait up to %s for the lock; at most %s was expected.",
			formatTime(r.times.longest), formatTime(grantWithin))
	}
	if len(o.failures) == 0 {
		o.see("Holders killed by SIGKILL in the middle of a transaction: %d. The next worker had the lock %s after the kill "+
			"on average, %s at most, and found the last committed salary.",
			len(got.waits), formatTime(r.times.average), formatTime(r.times.longest))
	}
	return o
}

// succeed lets a chain of workers inherit the lock: while one holds it the next waits, then the holder is killed.
func (s *stage) succeed(ctx context.Context) (succession, error) {
	c := newCrew(ctx, s.options.database.ConnString())
	defer c.disband()
	var (
		result succession
		start  = time.Now()
	)
	holder, err := c.startWaiting(1, job{Kind: jobInherit})
	if err != nil {
		return result, err
	}
	if _, err := c.await(eventGranted); err != nil {
		return result, err
	}
	for committed := range int64(s.options.rounds) + 1 {
		holding, err := c.await(eventHolding)
		if err != nil {
			return result, err
		}
		result.holders++
		if holding.Salary != firstSalary+committed {
			result.wrong++
		}
		if committed == int64(s.options.rounds) {
			break
		}
		if holder, err = c.replace(holder, &result); err != nil {
			return result, err
		}
		s.progress.update(float64(committed+1)/float64(s.options.rounds), formatCount(len(result.waits))+" killed")
	}
	result.elapsed = time.Since(start)
	return result, nil
}

// replace lets another worker wait, kills the holder, and returns the new one when it has the lock.
func (c *crew) replace(holder *worker, result *succession) (*worker, error) {
	heir, err := c.startWaiting(holder.number+1, job{Kind: jobInherit})
	if err != nil {
		return nil, err
	}
	tooEarly, err := c.nextWithin(heldFor)
	switch {
	case err == nil && tooEarly.Event == eventGranted:
		result.early++
		return heir, holder.kill()
	case err == nil:
		return nil, tooEarly.surprise(eventGranted)
	case !errors.Is(err, errSilence):
		return nil, err
	}
	killed := time.Now()
	if err := holder.kill(); err != nil {
		return nil, err
	}
	granted, err := c.await(eventGranted)
	if err != nil {
		return nil, err
	}
	result.waits = append(result.waits, granted.at.Sub(killed))
	return heir, nil
}
