// Package contract holds the library to its laws, one test a law, on every ground on which it promises them: by session locks,
// by leases where there are sessions, behind a pooler, on emulations of distributed engines, and on servers that the
// variable PGBATON_TEST_ENGINES names. The laws are numbered:
//
//	 1 Exclusion: of a key, one exclusive holder or any number of shared ones, in no matter which process.
//	 2 Tokens: an exclusive grant's token is greater than that of every earlier grant, and below 2^53.
//	 3 Nothing is left behind by an acquire that fails.
//	 4 Release tells the truth.
//	 5 The holder is told of a loss, on a silent network before another can be granted the key.
//	 6 The server frees what the holder cannot: its process was killed or is frozen.
//	 7 Bounded connections, and never the caller's.
//	 8 No starvation: each process and each goroutine gets its turn.
//	 9 Waiting is cheap and harmless.
//	10 No damage to the server: a client holds so many keys and no more.
//	11 Wrong ground is refused, by an error that says why.
//	12 The database's clock decides.
//	13 Input is never spliced into SQL.
//
// At the end of a run, results/contract.md has a table of law × ground with the number of operations.
package contract

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(reporting{lab.Run{M: m}})
}

// reporting are the tests, and the table after them.
type reporting struct{ tests interface{ Run() int } }

// Run implements what lab.Run runs.
func (r reporting) Run() int {
	code := r.tests.Run()
	return max(code, writeTable())
}
