package sessionengine

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// A look at the lock table costs the server milliseconds, so only a client that holds a good part of it
// looks, and at most once a TTL.
const (
	manyLocks  = 16 // holding one lock in so many of the table's is holding many
	fullest    = 70 // percent of the table, above which new locks are refused
	percentage = 100
)

// lockTable is the server's lock table, which is shared by all its clients. A full one refuses logins to everybody.
type lockTable struct {
	lookEvery time.Duration
	size      atomic.Int64          // places
	looked    time.Time             // guarded by the lock manager's mutex
	crowded   atomic.Pointer[error] // what the last look found, if it was too full
}

// pressure returns what the last look found, for a client that holds or asks for so many keys, and whether another look
// is due. It is called with the lock manager's mutex.
func (t *lockTable) pressure(held int, now time.Time) (look bool, err error) {
	if int64(held)*manyLocks < t.size.Load() {
		t.crowded.Store(nil)
		return false, nil
	}
	if now.Sub(t.looked) >= t.lookEvery {
		t.looked, look = now, true
	}
	if crowded := t.crowded.Load(); crowded != nil {
		return look, *crowded
	}
	return look, nil
}

var stmtLook = pipeline.Statement{Name: "pgbaton_look", SQL: "SELECT count(*) FROM pg_locks WHERE NOT fastpath"}

// look takes the answer to a look.
type look lockTable

// Row implements [pipeline.Sink].
func (t *look) Row(values [][]byte) error {
	if len(values) != 1 || len(values[0]) != 8 {
		return pipeline.ErrProtocol
	}
	used, size := int64(binary.BigEndian.Uint64(values[0])), max(t.size.Load(), 1) //nolint:gosec // the bits are the number
	t.crowded.Store(nil)
	if percent := used * percentage / size; percent >= fullest {
		err := fmt.Errorf("%w: the server's lock table is %d %% full (%d of about %d): "+
			"release some, or raise max_locks_per_transaction", lockerr.TooManyLocks, percent, used, size)
		t.crowded.Store(&err)
	}
	return nil
}
