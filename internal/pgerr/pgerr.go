// Package pgerr reads the errors of PostgreSQL, whichever driver brings them.
package pgerr

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// The SQLSTATEs that the library tells apart.
const (
	LockNotAvailable     = "55P03"
	QueryCanceled        = "57014"
	SerializationFailure = "40001"
	DeadlockDetected     = "40P01"

	FailedTransaction = "25P02"
	ReadOnly          = "25006"

	UndefinedSchema       = "3F000"
	UndefinedTable        = "42P01"
	UndefinedColumn       = "42703"
	UndefinedFunction     = "42883"
	InsufficientPrivilege = "42501"

	StaleToken  = "PB001" // the schema's own
	OtherEngine = "PB002"

	AdminShutdown      = "57P01" // pg_terminate_backend, or a shutdown of the server
	CrashShutdown      = "57P02"
	CannotConnectNow   = "57P03"
	IdleSessionTimeout = "57P05"

	IdleInTransactionTimeout = "25P03"

	OutOfMemory      = "53200" // with the hint on max_locks_per_transaction it is the lock table
	UnknownStatement = "26000" // invalid_sql_statement_name: it was prepared, and is no longer

	FeatureNotSupported = "0A000"

	CompletionUnknown = "40003" // statement_completion_unknown

	UniqueViolation = "23505" // also of a catalog, when two make one thing at the same time
	DuplicateSchema = "42P06"
)

// Code is the SQLSTATE of err, or "" if err did not come from a server. It reads pgx's *pgconn.PgError and
// lib/pq's *pq.Error by the method that they share.
func Code(err error) string {
	var e interface {
		error
		SQLState() string
	}
	if !errors.As(err, &e) {
		return ""
	}
	code := e.SQLState()
	if code == invalidText {
		if refused, _, ok := refusal(e.Error()); ok {
			return refused
		}
	}
	return code
}

// invalidText is what the server says of a text that is no number.
const invalidText = "22P02"

// refusal reads the SQLSTATE and the text of an error that pgbaton.refuse of the portable schema has raised: there they are the text
// that is no number.
func refusal(message string) (code, said string, ok bool) {
	_, after, ok := strings.Cut(message, "\"pgbaton/")
	if !ok {
		return "", "", false
	}
	if end := strings.LastIndexByte(after, '"'); end >= 0 {
		after = after[:end]
	}
	code, said, ok = strings.Cut(after, "/")
	return code, said, ok
}

// SyntaxOrAccess is the class of errors about what does not exist, is not as expected, or is forbidden.
const SyntaxOrAccess = "42"

// Class is the class of err's SQLSTATE, its first two characters, or "".
func Class(err error) string {
	code := Code(err)
	return code[:min(2, len(code))]
}

// Detail is the server's DETAIL of err, or "".
func Detail(err error) string {
	if Code(err) == StaleToken {
		if _, said, ok := refusal(err.Error()); ok {
			return said
		}
	}
	var pgxErr *pgconn.PgError
	if errors.As(err, &pgxErr) {
		return pgxErr.Detail
	}
	return libpqField(err, 'D')
}

// Hint is the server's HINT of err, or "".
func Hint(err error) string {
	var pgxErr *pgconn.PgError
	if errors.As(err, &pgxErr) {
		return pgxErr.Hint
	}
	return libpqField(err, 'H')
}

// Position is where in the statement err happened, counted in characters from 1; 0 if the server did not say.
func Position(err error) int {
	var pgxErr *pgconn.PgError
	if errors.As(err, &pgxErr) {
		return int(pgxErr.Position)
	}
	n, err := strconv.Atoi(libpqField(err, 'P'))
	if err != nil {
		return 0
	}
	return n
}

// libpqField reads a field of a protocol's ErrorResponse from lib/pq's error without importing lib/pq.
func libpqField(err error, field byte) string {
	var e interface{ Get(k byte) string }
	if errors.As(err, &e) {
		return e.Get(field)
	}
	return ""
}

// protocolViolation is what PgBouncer answers when it is full, with a message of its own; newer ones say tooMany.
const (
	protocolViolation = "08P01"
	tooMany           = "53300"
)

// Explain adds to an error of a pooler's that its pool is full. Other errors are returned as they are.
func Explain(err error) error {
	if code := Code(err); code != protocolViolation && code != tooMany {
		return err
	}
	switch text := err.Error(); {
	case strings.Contains(text, "query_wait_timeout"):
		return fmt.Errorf("the connection pooler's pool is full (no server connection came free in its query_wait_timeout): "+
			"raise its pool_size: %w", err)
	case strings.Contains(text, "no more connections allowed"):
		return fmt.Errorf("the connection pooler takes no more clients: raise its limit: %w", err)
	}
	return err
}

// Retryable reports whether the whole transaction that ended with err may succeed when it is run again.
func Retryable(err error) bool {
	code := Code(err)
	return code == SerializationFailure || code == DeadlockDetected
}

// Passing reports whether err is no reason not to send the same once more: a conflict, or a cancel, as by a timeout.
func Passing(err error) bool { return Code(err) == QueryCanceled || Retryable(err) }

// StalePlan reports whether err is "cached plan must not change result type": the table was altered after the statement
// was prepared. The server says so before the statement does anything. The name of its routine is not translated.
func StalePlan(err error) bool {
	if Code(err) != FeatureNotSupported {
		return false
	}
	var pgxErr *pgconn.PgError
	if errors.As(err, &pgxErr) {
		return pgxErr.Routine == "RevalidateCachedQuery"
	}
	return libpqField(err, 'R') == "RevalidateCachedQuery"
}

// Translate adds the library's sentinel to an error of the server. Other errors, and one that has been
// translated, are returned as they are.
func Translate(err error) error {
	var sentinel error
	code := Code(err)
	switch code {
	case LockNotAvailable:
		sentinel = lockerr.NotAcquired
	case SerializationFailure:
		sentinel = lockerr.Conflict
	case DeadlockDetected:
		sentinel = lockerr.Deadlock
	case StaleToken:
		sentinel = lockerr.StaleToken
	}
	if sentinel == nil || errors.Is(err, sentinel) {
		return err
	}
	if detail := Detail(err); code == DeadlockDetected && detail != "" {
		return fmt.Errorf("%w: %w: %s", sentinel, err, strings.ReplaceAll(detail, "\n", " "))
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}

// Schema reports what to do when a statement of the library's own failed because the schema, or something in it, is
// missing or forbidden. Other errors, and one that has been translated, are returned as they are.
func Schema(err error) error {
	if errors.Is(err, lockerr.Schema) || errors.Is(err, lockerr.Engine) {
		return err
	}
	switch Code(err) {
	case UndefinedSchema, UndefinedTable, UndefinedColumn, UndefinedFunction:
		return fmt.Errorf("%w: run its migrations in this database (pgbaton.Migrate): %w", lockerr.Schema, err)
	case OtherEngine:
		return fmt.Errorf("%w: %w: %s", lockerr.Engine, err, Hint(err))
	case InsufficientPrivilege:
		if hint := Hint(err); hint != "" { // one of the schema's functions refuses, and says what to do
			return fmt.Errorf("%w: %w: %s", lockerr.Schema, err, strings.ReplaceAll(hint, "\n", " "))
		}
		return fmt.Errorf("%w: the role lacks a privilege; a service is given all it needs by pgbaton.grant_service(role): %w",
			lockerr.Schema, err)
	}
	return err
}

// StaleDetail is what the schema's functions say of a stale token, as JSON in the DETAIL.
type StaleDetail struct {
	Resource      string
	Token, Newest int64
}

// Stale reports whether err is the schema's word on a stale token, and what it says.
func Stale(err error) (detail StaleDetail, ok bool) {
	if Code(err) != StaleToken {
		return detail, false
	}
	if json.Unmarshal([]byte(Detail(err)), &detail) != nil {
		return StaleDetail{}, true // somebody else raised it, without the detail
	}
	return detail, true
}

// SessionEnded reports whether err is that of a statement whose session the server has ended, or the network has cut. A
// connection that was refused is another matter.
func SessionEnded(err error) bool {
	switch Code(err) {
	case AdminShutdown, CrashShutdown:
		return true
	case "":
		for _, cut := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
			if errors.Is(err, cut) {
				return true
			}
		}
	}
	return false
}

// CommitUnknown reports whether a COMMIT that returned err may have committed. An error of the server that
// leaves the session alive says that it has not; a broken connection, or a server that goes down, says nothing.
func CommitUnknown(err error) bool {
	code := Code(err)
	switch {
	case err == nil:
		return false
	case code == "":
		return !pgconn.SafeToRetry(err) // nothing was sent
	case code == CompletionUnknown, code == AdminShutdown, code == CrashShutdown, code == CannotConnectNow:
		return true
	}
	// Connection exceptions, system errors and internal errors.
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "58") || strings.HasPrefix(code, "XX")
}
