package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton"
)

const (
	jobTransfer = "transfer"
	jobAudit    = "audit"
)

// withoutLocksPart is the part of a section's time in which the readers and writers do without locks, to show
// that the readers would notice.
const withoutLocksPart = 2

var budgetKey = pgbaton.Name("pgbaton_demo/budget")

const sqlMoveSalary = `
UPDATE pgbaton_demo.employee
SET salary = salary + $2
WHERE id = $1`

const sqlSumSalaries = `
SELECT sum(salary)::bigint
FROM pgbaton_demo.employee`

// transfer is the writer: it moves one from Ada to Grace in two statements, each a transaction of its own. In
// between, the money is in neither row.
func (b *kit) transfer(ctx context.Context) error {
	return b.within(ctx, b.client.Acquire, func(ctx context.Context) error {
		if _, err := b.pool.Exec(ctx, sqlMoveSalary, ada, -1); err != nil {
			return fmt.Errorf("take from Ada: %w", err)
		}
		b.think(ctx)
		if _, err := b.pool.Exec(ctx, sqlMoveSalary, grace, 1); err != nil {
			return fmt.Errorf("give to Grace: %w", err)
		}
		return nil
	})
}

// audit is the reader: it checks that the two salaries add up.
func (b *kit) audit(ctx context.Context) error {
	return b.repeat(ctx, func(ctx context.Context) error {
		var sum int64
		err := b.within(ctx, b.client.AcquireShared, func(ctx context.Context) error {
			return b.pool.QueryRow(ctx, sqlSumSalaries).Scan(&sum)
		})
		if err != nil {
			return err
		}
		b.counts.Reads++
		if sum != 2*firstSalary {
			b.counts.Torn++
		}
		return nil
	})
}

// within does fn while it holds the budget's lock, if the job is done with locks.
func (b *kit) within(ctx context.Context,
	acquire func(context.Context, pgbaton.Key) (*pgbaton.Lock, error), fn func(context.Context) error,
) error {
	if !b.job.Locked {
		return fn(ctx)
	}
	lock, err := acquire(ctx, budgetKey)
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx), lock.Release(ctx))
}

func auditTransfers(ctx context.Context, s *stage) (outcome, error) {
	without, err := s.moveMoney(ctx, titleReadersWithoutLock, false, s.options.duration/withoutLocksPart)
	if err != nil {
		return outcome{}, err
	}
	with, err := s.moveMoney(ctx, titleReadersWithLocks, true, s.options.duration)
	if err != nil {
		return outcome{}, err
	}
	return judgeAudit(without, with), nil
}

func judgeAudit(without, with row) outcome {
	o := outcome{rows: []row{without, with}}
	o.failOnErrors(without)
	o.failOnErrors(with)
	if without.torn > 0 {
		o.see("Without locks, %s of %s reads came in the middle of a transfer and found the sum wrong.",
			formatCount(without.torn), formatCount(without.reads))
	} else {
		o.fail("Without locks no read found the sum wrong, so this run proved nothing. Try more time (-duration).")
	}
	switch {
	case with.mutations == 0 || with.reads == 0:
		o.fail("With locks there were %d transfers and %d reads, so this run proved nothing. Try more time (-duration).",
			with.mutations, with.reads)
	case with.torn > 0 || with.lost != 0:
		o.fail("With locks, %s of %s reads found the sum wrong, and %s transfers were lost. That must never happen: "+
			"please report it.", formatCount(with.torn), formatCount(with.reads), formatCount(with.lost))
	default:
		o.see("With readers under AcquireShared and writers under Acquire, none of %s reads did, during %s transfers.",
			formatCount(with.reads), formatCount(with.mutations))
	}
	return o
}

// moveMoney lets half of the workers move money and the others, at least one of each, watch the sum.
func (s *stage) moveMoney(ctx context.Context, title string, locked bool, length time.Duration) (row, error) {
	jobs := make([]job, max(s.options.workers, 2))
	for i := range jobs {
		jobs[i] = job{Kind: jobTransfer, Locked: locked, Duration: length, Work: s.options.work}
		if i%2 == 1 {
			jobs[i].Kind = jobAudit
		}
	}
	return s.measure(ctx, title, grace, jobs)
}
