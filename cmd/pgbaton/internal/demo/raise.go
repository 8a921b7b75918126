package demo

import (
	"context"
	"time"

	"github.com/pgbaton/pgbaton"
)

const jobRaise = "raise"

var employeeKey = pgbaton.Name("pgbaton_demo/employee/1")

// raise is the worker: it reads Ada's salary, thinks, and writes the salary plus one, over and over.
func (b *bench) raise(ctx context.Context) error {
	readChangeWrite := func(ctx context.Context) error {
		salary, err := readSalary(ctx, b.pool, ada)
		if err != nil {
			return err
		}
		b.think(ctx)
		_, err = b.pool.Exec(ctx, sqlWriteSalary, ada, salary+1)
		return err
	}
	return b.repeat(ctx, func(ctx context.Context) error {
		start := time.Now()
		var err error
		if b.job.Locked {
			err = b.client.Do(ctx, employeeKey, func(ctx context.Context, _ *pgbaton.Lock) error {
				return readChangeWrite(ctx)
			})
		} else {
			err = readChangeWrite(ctx)
		}
		if err == nil {
			b.counts.Mutations = append(b.counts.Mutations, time.Since(start))
		}
		return err
	})
}

func raiseWithoutLock(ctx context.Context, s *stage) (outcome, error) {
	r, problem, err := s.raiseSalary(ctx, titleWithoutLock, false)
	if err != nil {
		return outcome{}, err
	}
	return judgeWithoutLock(r, problem), nil
}

func judgeWithoutLock(r row, problem string) outcome {
	o := outcome{rows: []row{r}}
	o.failOnErrors(r, problem)
	if r.lost > 0 {
		o.see("Without a lock, %s of %s raises were lost: two workers read the same salary, and the later write "+
			"covered the earlier one.", formatCount(r.lost), formatCount(r.mutations))
	} else {
		o.fail("Without a lock no raise was lost, so this run proved nothing. Try more workers (-workers) or more " +
			"time (-duration).")
	}
	return o
}

func raiseWithLock(ctx context.Context, s *stage) (outcome, error) {
	r, problem, err := s.raiseSalary(ctx, titleWithLock, true)
	if err != nil {
		return outcome{}, err
	}
	return judgeWithLock(r, problem), nil
}

func judgeWithLock(r row, problem string) outcome {
	o := outcome{rows: []row{r}}
	o.failOnErrors(r, problem)
	switch {
	case r.mutations == 0:
		o.fail("With the lock nobody got a raise, so this run proved nothing. Try more time (-duration).")
	case r.lost != 0:
		o.fail("With the lock, %s of %s raises were lost. That must never happen: please report it.",
			formatCount(r.lost), formatCount(r.mutations))
	default:
		o.see("The same code inside client.Do lost none of its %s raises.", formatCount(r.mutations))
	}
	return o
}

// raiseSalary lets all workers raise Ada's salary, and compares what they wrote with what is there.
func (s *stage) raiseSalary(ctx context.Context, title string, locked bool) (row, string, error) {
	if err := resetSalaries(ctx, s.pool); err != nil {
		return row{}, "", err
	}
	jobs := make([]job, s.options.workers)
	for i := range jobs {
		jobs[i] = job{Kind: jobRaise, Locked: locked, Duration: s.options.duration, Work: s.options.work}
	}
	total, elapsed, err := s.perform(ctx, jobs)
	if err != nil {
		return row{}, "", err
	}
	salary, err := readSalary(ctx, s.pool, ada)
	if err != nil {
		return row{}, "", err
	}
	r := newRow(title, total, elapsed)
	r.lost = lostUpdates(r.mutations, int(salary-firstSalary), r.errors)
	return r, total.Problem, nil
}

func newRow(title string, total counts, elapsed time.Duration) row {
	return row{
		title:     title,
		mutations: len(total.Mutations),
		reads:     total.Reads,
		torn:      total.Torn,
		errors:    total.Errors,
		times:     summarize(total.Mutations),
		elapsed:   elapsed,
	}
}
