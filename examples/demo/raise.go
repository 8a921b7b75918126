package demo

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
)

// The workers of each kind read Ada's salary, think, and write the salary plus one, over and over. They
// differ in how they keep others from doing the same in between.
const (
	jobRaiseUnlocked  = "raise"
	jobRaiseAdvisory  = "raise, advisory lock"
	jobRaiseRowLocked = "raise, row lock"
	jobRaiseVersion   = "raise, version"
	jobRaiseMutate    = "raise, version and retries"
)

var (
	adaLock  = pgbaton.Name("pgbaton_demo/employee/1")
	adaKey   = pgbaton.Values{"id": ada}
	adaTable = pgx.Identifier{"pgbaton_demo", "employee"}
)

// employee is what the workers read of a row.
type employee struct {
	Salary int64
}

func (b *kit) raiseUnlocked(ctx context.Context) error {
	salary, err := readSalary(ctx, b.pool, ada)
	if err != nil {
		return err
	}
	b.think(ctx)
	_, err = b.pool.Exec(ctx, sqlWriteSalary, ada, salary+1)
	return err
}

func (b *kit) raiseAdvisory(ctx context.Context) error {
	return b.client.Do(ctx, adaLock, func(ctx context.Context, _ *pgbaton.Lock) error {
		return b.raiseUnlocked(ctx)
	})
}

func (b *kit) raiseRowLocked(ctx context.Context) error {
	return pgbaton.InTx(ctx, b.pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		row, err := pgbaton.LockRow[employee](ctx, tx, adaTable, adaKey, nil)
		if err != nil {
			return err
		}
		b.think(ctx)
		_, err = tx.Exec(ctx, sqlWriteSalary, ada, row.Salary+1)
		return err
	})
}

const sqlReadVersion = `
SELECT salary, version
FROM pgbaton_demo.employee
WHERE id = $1`

func (b *kit) raiseVersion(ctx context.Context) error {
	var salary, version int64
	if err := b.pool.QueryRow(ctx, sqlReadVersion, ada).Scan(&salary, &version); err != nil {
		return fmt.Errorf("read salary and version: %w", err)
	}
	b.think(ctx)
	_, err := pgbaton.UpdateVersion(ctx, b.pool, adaTable, adaKey, version, pgbaton.Values{"salary": salary + 1}, nil)
	if errors.Is(err, pgbaton.ErrConflict) {
		b.counts.Conflicts++
		return errRefused
	}
	return err
}

func (b *kit) raiseMutate(ctx context.Context) error {
	attempts := 0
	_, err := pgbaton.Mutate(ctx, b.pool, adaTable, adaKey, nil, func(row *employee) error {
		attempts++
		b.think(ctx)
		row.Salary++
		return nil
	})
	b.counts.Conflicts += max(attempts-1, 0)
	if errors.Is(err, pgbaton.ErrConflict) {
		b.counts.Conflicts++ // of the last attempt
		return errRefused
	}
	return err
}

// compare makes a section of the comparison: all workers raise Ada's salary, in one way.
func compare(title, kind string, judge func(row) outcome) func(context.Context, *stage) (outcome, error) {
	return func(ctx context.Context, s *stage) (outcome, error) {
		jobs := make([]job, s.options.workers)
		for i := range jobs {
			jobs[i] = job{Kind: kind, Duration: s.options.duration, Work: s.options.work}
		}
		r, err := s.measure(ctx, title, ada, jobs)
		if err != nil {
			return outcome{}, err
		}
		return judge(r), nil
	}
}

func judgeUnlocked(r row) outcome {
	o := outcome{compared: []row{r}}
	o.failOnErrors(r)
	if r.lost > 0 {
		o.see("Without a lock, %s of %s raises were lost: two workers read the same salary, and the later write "+
			"covered the earlier one.", formatCount(r.lost), formatCount(r.mutations))
	} else {
		o.fail("Without a lock no raise was lost, so this run proved nothing. Try more workers (-workers) or more " +
			"time (-duration).")
	}
	return o
}

// judgeGuarded is for a way in which nothing may be lost, and says whether nothing was.
func judgeGuarded(r row) (outcome, bool) {
	o := outcome{compared: []row{r}}
	o.failOnErrors(r)
	switch {
	case r.mutations == 0:
		o.fail("Nobody got a raise, so this run proved nothing. Try more time (-duration).")
	case r.lost != 0:
		o.fail("%s of %s raises were lost. That must never happen here: please report it.",
			formatCount(r.lost), formatCount(r.mutations))
	default:
		return o, true
	}
	return o, false
}

func judgeAdvisory(r row) outcome {
	o, good := judgeGuarded(r)
	if good {
		o.see("The same code inside client.Do lost none of its %s raises.", formatCount(r.mutations))
	}
	return o
}

func judgeRowLocked(r row) outcome {
	o, good := judgeGuarded(r)
	if good {
		o.see("With LockRow in a transaction, none of %s raises was lost.", formatCount(r.mutations))
	}
	return o
}

const noConflict = "There was no conflict, so this run proved nothing. Try more workers (-workers) or more time " +
	"(-duration)."

func judgeVersion(r row) outcome {
	o, good := judgeGuarded(r)
	switch {
	case good && r.refused > 0:
		o.see("UpdateVersion, tried once, lost none of its %s raises. It refused %s others with ErrConflict, because "+
			"somebody had changed the row since it was read: %s of the calls. What to do then is for the caller to decide.",
			formatCount(r.mutations), formatCount(r.refused), formatPercent(r.refused, r.mutations+r.refused))
	case good:
		o.fail(noConflict)
	}
	return o
}

func judgeMutate(r row) outcome {
	o, good := judgeGuarded(r)
	switch {
	case good && r.conflicts > 0:
		o.see("Mutate, which reads again and tries again after a conflict, lost none of its %s raises, with %s conflicts. "+
			"Calls that gave up with ErrConflict after their last attempt: %s. The longest raise took %s.",
			formatCount(r.mutations), formatCount(r.conflicts), formatCount(r.refused), formatTime(r.times.longest))
	case good:
		o.fail(noConflict)
	}
	return o
}

// choice is the advice at the end.
const choice = `Which to choose when:
  client.Do      the work spans several transactions, or more than the database
  Semaphore      so many may do it at the same time and no more, such as calls of a slow partner
  client.Lead    one process of many does it all the time, and another when that one dies
  LockRow        one transaction changes a row that others want too: others wait instead of failing
  UpdateVersion  a form is open meanwhile: its user should hear that the row has changed
  Mutate         conflicts are rare, and the change can simply be computed again
  no lock        one statement does it all (SET salary = salary + 1), or nobody else writes
`
