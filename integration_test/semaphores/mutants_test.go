package semaphores

import (
	"cmp"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// mutate writes a function of the schema anew, with a piece of its text replaced. It fails when there is no such piece.
const mutate = `
CREATE FUNCTION pg_temp.mutate(function regproc, piece text, other text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    old CONSTANT text := pg_get_functiondef(function);
    new CONSTANT text := replace(old, piece, other);
BEGIN
    ASSERT new <> old, function || ' has no such text';
    EXECUTE new;
END $$;
`

// mutants are known mistakes, each as the SQL that makes it.
var mutants = map[string]string{
	"None": "",
	// A slot is claimed without a look at who has it.
	"HeldSlotsAreClaimed": `
SELECT pg_temp.mutate('pgbaton.claim_slots', 'f.holder IS NULL', 'true'),
       pg_temp.mutate('pgbaton.pick_slots', 'AND s.holder IS NULL', '');`,
	// Whoever finds no free slot takes those of the living.
	"TheLivingAreHeldForDead": `
SELECT pg_temp.mutate('pgbaton.present', 'ELSE NOT pg_try_advisory_xact_lock_shared(holder)', 'ELSE false');`,
	// A capacity that is lowered closes nothing.
	"SurplusIsClaimed": `
SELECT pg_temp.mutate('pgbaton.settle_semaphore', 'closed = excess > 0', 'closed = false'),
       pg_temp.mutate('pgbaton.claim_slots', 'm.surplus = 0 OR', 'true OR');`,
	// The table is written anew without being locked. It waits for its lock longer than the right one, which on a crowded
	// machine may never get it.
	"CompactionWithoutALock": `
SELECT pg_temp.mutate('pgbaton.compact_slots', 'LOCK TABLE pgbaton.slot IN ACCESS EXCLUSIVE MODE;', ''),
       pg_temp.mutate('pgbaton.compact_slots', '50ms', '500ms'),
       pg_temp.mutate('pgbaton.compact_slots', 'TRUNCATE pgbaton.slot', 'PERFORM pg_sleep(0.05); TRUNCATE pgbaton.slot');`,
}

// patience is how many rounds a mistake may go unseen.
const patience = 40

// What the hammer and the test of compaction look for they find, when it is there: each known mistake is one that
// their checks see.
func TestMutants(t *testing.T) {
	t.Parallel()
	for name, mutant := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			started, violation := time.Now(), ""
			for round := 0; round == 0 || (mutant != "" && violation == "" && round < patience); round++ { // a mistake shows by chance
				dsn := lab.Database(t)
				if mutant != "" {
					testkit.Run(t, dsn, mutate+mutant)
				}
				violation = disturbed(t, dsn)
			}
			testkit.Figure(t, "mutant %s, after %v: %.200s", name, time.Since(started).Round(time.Millisecond), violation)
			if mutant == "" {
				require.Empty(t, violation)
			} else {
				require.NotEmpty(t, violation, "the mutant was not caught")
			}
		})
	}
}

// disturbed lets processes take permits while the capacity shrinks and grows and the table is written anew, again and
// again. It returns what was wrong; "" if nothing was.
func disturbed(t *testing.T, dsn string) string {
	t.Helper()
	s := create(t, dsn, "s", hammerCapacity)
	create(t, dsn, "ballast", 1000)
	conn, old := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	keepSnapshot(t, old)
	resizes := fixed(hammerCapacity)
	var workers []*worker.Process
	var calls []*worker.Call
	for range 3 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Permits, DSN: dsn, Key: "s", N: hammerWeight, Goroutines: 6, For: 2 * time.Second,
			Hold: time.Millisecond, Faults: true,
		}))
	}
	broken := ""
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for done, turn := false, 0; !done; turn++ {
		select {
		case <-calls[0].Settled():
			done = true
		case <-ticker.C:
			if turn%2 == 0 {
				resizes = append(resizes, resize(t, s))
			} else {
				if err := writeAnew(t, conn); err != nil {
					broken = cmp.Or(broken, err.Error())
				}
			}
		}
	}
	testkit.Exec(t, old, "ROLLBACK")
	lost := int64(0)
	for _, call := range calls {
		answer, ok := call.Answer(lab.Hang)
		if !ok || answer.Fail != "" {
			return fmt.Sprintf("a process did not answer, or failed: %s", answer.Fail)
		}
		lost += answer.Counts["lost"]
	}
	var all []*history.Grant
	for _, p := range workers {
		grants, _ := p.History()
		all = append(all, grants...)
	}
	_, overlaps, err := history.Permits(all, resizes)
	switch {
	case broken != "":
		return broken
	case err != nil:
		return err.Error()
	case lost > 0:
		return fmt.Sprintf("%d permits were lost, %d of them overlapped with others", lost, len(overlaps))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	capacity := resizes[len(resizes)-1].Capacity
	permit, err := s.Acquire(ctx, capacity)
	if err != nil {
		return fmt.Sprintf("not all %d permits at once: %v", capacity, err)
	}
	require.NoError(t, permit.Release(ctx))
	return ""
}
