package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// PortableVersion is [ClientVersion] for the portable set of migrations, which counts by itself.
const PortableVersion = 3

// PortableError reports that the database has the portable schema. It matches [lockerr.UnsupportedServer]: there are no sessions to hold
// locks there.
type PortableError struct {
	Reason string // why it has that schema
}

// Error says why, and what to do.
func (e *PortableError) Error() string {
	return fmt.Sprintf("%v: the database has the portable schema, because %s: locks are leases there (Config.Engine: EngineAuto or EngineLease)",
		lockerr.UnsupportedServer, e.Reason)
}

// Unwrap returns the sentinel.
func (e *PortableError) Unwrap() error { return lockerr.UnsupportedServer }

// errPortable says that the schema is the portable one, as the catalog knows.
var errPortable = errors.New("the schema is the portable one")

var readPortable = Command{What: "read why the schema is the portable one", SQL: "SELECT pgbaton.portable_reason()"}

// findPortable returns what is to be said of a portable schema, nil if there is none that the role may use; or why it cannot be known.
func findPortable(ctx context.Context, conn *pgconn.PgConn) error {
	row, err := queryRow(ctx, conn, readPortable.SQL)
	if pgerr.Code(err) != "" {
		return nil // the first look has the better error
	}
	if err != nil {
		return fmt.Errorf("%s: %w", readPortable.What, err)
	}
	return &PortableError{Reason: row[0]}
}

// preparePortable makes a fresh connection ready for the portable schema, in one round trip, without a look at catalogs or at anything
// that belongs to a session.
func (s *Session) preparePortable(ctx context.Context, commands []Command) error {
	s.Portable = true
	s.Heard = time.Now()
	flight := append([]Command{readPortable, readVersion, readRecord}, commands...)
	answers, err := s.fly(ctx, flight)
	if err != nil {
		return err
	}
	if err := firstFailure(flight[:1], answers); err != nil {
		return err
	}
	if s.Server.Schema, err = checkSchemaVersion(answers[1], PortableVersion); err != nil {
		return err
	}
	if s.Record, err = recordOf(answers[2]); err != nil {
		return err
	}
	return firstFailure(commands, answers[3:])
}
