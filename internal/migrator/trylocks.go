package migrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tryLocks tries out advisory locks, which some engines have of sessions and not of transactions, and others have in name only. It needs a
// second connection, and makes do without one where none can be had. A connection that is lost says nothing about locks: lost is why.
func tryLocks(ctx context.Context, conn *pgx.Conn, config *pgxpool.Config) (sessions, transactions, lost error) {
	one := conn.PgConn()
	var two *pgconn.PgConn
	if other, err := open(ctx, config); err == nil {
		defer Close(ctx, other)
		if config.AfterConnect == nil || config.AfterConnect(ctx, other) == nil { // it may set the role
			two = other.PgConn()
		}
	}
	sessions, transactions = inTransactions(ctx, one, two, trySessionLocks), inTransactions(ctx, one, two, tryTransactionLocks)
	if one.IsClosed() || two != nil && two.IsClosed() {
		return nil, nil, fmt.Errorf("the connection was lost: %w", cmp.Or(sessions, transactions, net.ErrClosed))
	}
	return sessions, transactions, nil
}

// probe tries something out with two connections, the second nil if none could be had.
type probe func(ctx context.Context, one, two *pgconn.PgConn) error

// inTransactions calls a probe while each connection is in a transaction: behind a pooler a session is theirs only then.
func inTransactions(ctx context.Context, one, two *pgconn.PgConn, p probe) error {
	return insist(func() error { return inTransactionsOnce(ctx, one, two, p) })
}

func inTransactionsOnce(ctx context.Context, one, two *pgconn.PgConn, p probe) error {
	for _, conn := range []*pgconn.PgConn{one, two} {
		if conn == nil {
			continue
		}
		defer func() { _, _ = ask(ctx, conn, "ROLLBACK") }() // after an error nothing else can be said on it
		if err := beginTry(ctx, conn); err != nil {
			return err
		}
	}
	return p(ctx, one, two)
}

func trySessionLocks(ctx context.Context, one, two *pgconn.PgConn) error {
	key := randomKey()
	take, give := "SELECT pg_catalog.pg_try_advisory_lock("+key+")", "SELECT pg_catalog.pg_advisory_unlock("+key+")"
	if err := expect(ctx, one, take, "t"); err != nil {
		return err
	}
	if two != nil {
		if excludes := expect(ctx, two, take, "f"); excludes != nil {
			if _, err := ask(ctx, one, give); err != nil {
				return err
			}
			return excludes
		}
	}
	if err := expect(ctx, one, give, "t"); err != nil {
		return err
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
