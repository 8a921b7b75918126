package session

import (
	"fmt"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Record says by which engine locks exclude in a database: "session", "lease" or "both"; "" as long as nobody has taken one.
type Record struct {
	Engine string
	By, At string // who recorded it, and when
}

var readRecord = Command{
	What: "read the engine of the locks", SQL: "SELECT engine, recorded_by, recorded_at FROM pgbaton.engine_record()",
}

// recordOf takes the answer to readRecord.
func recordOf(a answer) (Record, error) {
	if a.err == nil && len(a.rows) == 0 {
		return Record{}, nil
	}
	row, err := a.only()
	if err != nil {
		return Record{}, fmt.Errorf("%s: %w", readRecord.What, err)
	}
	return Record{row[0], row[1], row[2]}, nil
}

// EngineError is the error of a client whose engine is not the one that is recorded. It matches [lockerr.Engine].
type EngineError struct {
	Record Record
	Wanted string // the client's engine, with the reason if it is not its config's
}

// Error says who recorded the engine, when, and what to do.
func (e *EngineError) Error() string {
	return fmt.Sprintf("%v: this database has the engine %q, recorded by %s at %s, and this client has %s: let Config.Engine follow "+
		"the record, or change it, as docs/ground.md says (pgbaton.change_engine)",
		lockerr.Engine, e.Record.Engine, e.Record.By, e.Record.At, e.Wanted)
}

// Unwrap returns the sentinel.
func (e *EngineError) Unwrap() error { return lockerr.Engine }
