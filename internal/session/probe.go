package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// probeTimeout bounds each part of the probe.
const probeTimeout = 2 * time.Second

// probePooler tells a pooler in transaction mode from one in session mode by behaviour, before anything is
// SET or locked on sessions that may belong to others: it looks whether two connections ever share a
// server process, and whether one keeps its own while the other is in a transaction.
func probePooler(ctx context.Context, conn, other *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	first, err := backend(ctx, conn)
	if err != nil {
		return err
	}
	const rounds = 3
	for range rounds {
		if _, err := other.Exec(ctx, "BEGIN").ReadAll(); err != nil {
			return fmt.Errorf("look for a pooler: %w", err)
		}
		theirs, err := backend(ctx, other)
		if err != nil {
			return err
		}
		mine, err := backend(ctx, conn)
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("%w: one connection gets no answer while another has a transaction open, as in transaction "+
				"mode: %w", lockerr.Pooler, err)
		case err != nil:
			return err
		case theirs == first || mine != first:
			return fmt.Errorf("%w: it is in transaction mode: its connections share server processes (%s, %s, then %s), "+
				"and would share locks. Connect to the server itself, or through a pool in session mode",
				lockerr.Pooler, first, theirs, mine)
		}
		if _, err := other.Exec(ctx, "COMMIT").ReadAll(); err != nil {
			return fmt.Errorf("look for a pooler: %w", err)
		}
	}
	return nil
}

func backend(ctx context.Context, conn *pgconn.PgConn) (string, error) {
	row, err := queryRow(ctx, conn, "SELECT pg_backend_pid()")
	if err != nil {
		return "", fmt.Errorf("look for a pooler: %w", err)
	}
	return row[0], nil
}

// probeLocks makes sure, on a random key, that a lock of one session excludes another session, and that it
// can be unlocked. Some engines accept the functions and do nothing. It leaves no lock behind.
func probeLocks(ctx context.Context, conn, other *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	key := strconv.FormatInt(rand.Int64(), 10) //nolint:gosec // only to be nobody else's
	for _, step := range []struct {
		on            *pgconn.PgConn
		function      string
		want, problem string
	}{
		{conn, "pg_try_advisory_lock", "t", "refuses a lock on a free key"},
		{other, "pg_try_advisory_lock", "f", "grants one key to two sessions"},
		{conn, "pg_advisory_unlock", "t", "has forgotten a lock that was just granted"},
	} {
		row, err := queryRow(ctx, step.on, "SELECT "+step.function+"("+key+")")
		if err != nil {
			return fmt.Errorf("try out the server's advisory locks: %w", err)
		}
		if row[0] != step.want {
			return fmt.Errorf("%w: it %s (%s(%s) is %q)",
				lockerr.UnsupportedServer, step.problem, step.function, key, row[0])
		}
	}
	return nil
}

// second opens a plain connection beside the one that is probed, with the caller's hooks.
func (d *Dialer) second(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := d.config(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open a second connection to %s: %w", address(cfg), err)
	}
	if d.AfterConnect != nil {
		if err := d.AfterConnect(ctx, conn); err != nil {
			Close(conn)
			return nil, fmt.Errorf("%s: AfterConnect: %w", address(cfg), err)
		}
	}
	return conn, nil
}
