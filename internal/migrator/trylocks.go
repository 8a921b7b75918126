package migrator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// tryLocks tries out advisory locks, which some engines have of sessions and not of transactions, and others have in name only. It needs a
// second connection, and makes do without one where none can be had.
func tryLocks(ctx context.Context, conn *pgx.Conn, config *pgxpool.Config) (sessions, transactions error) {
	one := conn.PgConn()
	var two *pgconn.PgConn
	if other, err := open(ctx, config); err == nil {
		defer Close(ctx, other)
		if config.AfterConnect == nil || config.AfterConnect(ctx, other) == nil { // it may set the role
			two = other.PgConn()
		}
	}
	for range mostTries {
		if sessions = inTransactions(ctx, one, two, trySessionLocks); !pgerr.Retryable(sessions) {
			break
		}
	}
	for range mostTries {
		if transactions = inTransactions(ctx, one, two, tryTransactionLocks); !pgerr.Retryable(transactions) {
			break
		}
	}
	return sessions, transactions
}

// inTransactions calls f while each connection is in a transaction: behind a pooler a session is theirs only then.
func inTransactions(ctx context.Context, one, two *pgconn.PgConn, f func(ctx context.Context, one, two *pgconn.PgConn) error) error {
	for _, conn := range []*pgconn.PgConn{one, two} {
		if conn == nil {
			continue
		}
		defer func() { _, _ = ask(ctx, conn, "ROLLBACK") }() // after an error nothing else can be said on it
		if _, err := ask(ctx, conn, "BEGIN; SET LOCAL statement_timeout = 0"); err != nil {
			return err
		}
	}
	return f(ctx, one, two)
}

func trySessionLocks(ctx context.Context, one, two *pgconn.PgConn) error {
	key := randomKey()
	take, give := "SELECT pg_catalog.pg_try_advisory_lock("+key+")", "SELECT pg_catalog.pg_advisory_unlock("+key+")"
	if err := expect(ctx, one, take, "t"); err != nil {
		return err
	}
	var excludes error
	if two != nil {
		excludes = expect(ctx, two, take, "f")
		if excludes == nil {
			excludes = expect(ctx, one, give, "t")
		} else if _, err := ask(ctx, one, give); err != nil {
			return err
		}
	} else {
		excludes = expect(ctx, one, give, "t")
	}
	if excludes != nil {
		return excludes
	}
	return expect(ctx, one, give, "f")
}

func tryTransactionLocks(ctx context.Context, one, two *pgconn.PgConn) error {
	take := "SELECT pg_catalog.pg_try_advisory_xact_lock(" + randomKey() + ")"
	if err := expect(ctx, one, take, "t"); err != nil || two == nil {
		return err
	}
	return expect(ctx, two, take, "f")
}

var errNotTrue = errors.New("they are there in name only")

// expect asks for a boolean.
func expect(ctx context.Context, conn *pgconn.PgConn, sql, value string) error {
	got, err := ask(ctx, conn, sql)
	if err != nil {
		return err
	}
	if got != value {
		return fmt.Errorf("%w: %s says %q", errNotTrue, sql, got)
	}
	return nil
}

func randomKey() string {
	return strconv.FormatInt(rand.Int64(), 10) //nolint:gosec // only to be nobody else's
}
