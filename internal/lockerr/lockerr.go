// Package lockerr holds the sentinel errors that the rooms of the library share with its door.
// The root package exports each one under its public name and documents it there.
package lockerr

import (
	"errors"
	"fmt"
)

var (
	NotAcquired       = errors.New("pgbaton: lock not acquired")
	Lost              = errors.New("pgbaton: lock lost")
	NotHeld           = errors.New("pgbaton: lock not held")
	Deadlock          = errors.New("pgbaton: deadlock")
	TooManyLocks      = errors.New("pgbaton: too many locks")
	Pooler            = errors.New("pgbaton: connection goes through a pooler")
	Standby           = errors.New("pgbaton: server is a standby")
	UnsupportedServer = errors.New("pgbaton: unsupported server")
	Schema            = errors.New("pgbaton: schema does not serve this client")
	Conflict          = errors.New("pgbaton: conflict")
	StaleToken        = errors.New("pgbaton: stale token")
	NotFound          = errors.New("pgbaton: row not found")
	CommitUnknown     = errors.New("pgbaton: outcome of the commit is unknown")
	Closed            = errors.New("pgbaton: client closed")
	StaleSnapshot     = errors.New("pgbaton: the transaction's snapshot may be older than the lock: " +
		"acquire before the transaction begins, or use READ COMMITTED")
)

// Limit is TooManyLocks for a client that holds all that it may.
func Limit(maxHeld int) error {
	return fmt.Errorf("%w: this client holds, or asks for, the %d that its MaxHeld allows", TooManyLocks, maxHeld)
}
