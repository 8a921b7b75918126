package migrator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/dsn"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// closeTimeout bounds the goodbye to the server when the caller's context has ended.
const closeTimeout = 5 * time.Second

const oldestMajor = 14

// Migrate connects, chooses a set and applies it. A role's idle_in_transaction_session_timeout, or idle_session_timeout, can be so short that
// it ends the session in a slow moment, before it is lifted: then all is done anew.
func Migrate(ctx context.Context, config *pgxpool.Config) (set Set, err error) {
	for range mostTries {
		set, err = migrateOnce(ctx, config)
		if code := pgerr.Code(err); code != pgerr.IdleInTransactionTimeout && code != pgerr.IdleSessionTimeout {
			break
		}
	}
	return set, err
}

func migrateOnce(ctx context.Context, config *pgxpool.Config) (Set, error) {
	conn, err := Connect(ctx, config)
	if err != nil {
		return Set{}, err
	}
	defer Close(ctx, conn)
	set, err := Choose(ctx, conn, config)
	if err != nil {
		return Set{}, err
	}
	return set, set.Apply(ctx, conn)
}

// Connect opens a connection as the pool would, with its hooks, but outside of it, and refuses servers and poolers on which
// Run cannot do what it should.
func Connect(ctx context.Context, config *pgxpool.Config) (*pgx.Conn, error) {
	conn, err := open(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err = refuseStandby(conn); err == nil {
		err = refusePooler(ctx, conn, config)
	}
	if err == nil && config.AfterConnect != nil {
		if err = config.AfterConnect(ctx, conn); err != nil {
			err = fmt.Errorf("connect: AfterConnect: %w", err)
		} else if conn.PgConn().TxStatus() != 'I' {
			err = errors.New("connect: AfterConnect: it left a transaction open")
		}
	}
	if err != nil {
		Close(ctx, conn)
		return nil, err
	}
	return conn, nil
}

// open opens a bare connection. Its query mode is one that takes no statement prepared before for granted, and that works
// with every encoding.
func open(ctx context.Context, config *pgxpool.Config) (*pgx.Conn, error) {
	cfg := config.ConnConfig.Copy()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, cfg); err != nil {
			return nil, fmt.Errorf("BeforeConnect: %w", err)
		}
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, cfg)
	return conn, dsn.Connect(err)
}

// refuseVersion refuses servers that are too old for the full set.
func refuseVersion(conn *pgx.Conn) error {
	if major(conn.PgConn()) < oldestMajor {
		return refuse(lockerr.UnsupportedServer, "the server says that it is PostgreSQL %q, and %d is the oldest that runs the migrations",
			conn.PgConn().ParameterStatus("server_version"), oldestMajor)
	}
	return nil
}

func refuseStandby(conn *pgx.Conn) error {
	if conn.PgConn().ParameterStatus("in_hot_standby") == "on" {
		return refuse(lockerr.Standby, "the server is a standby: connect to the primary (target_session_attrs=read-write)")
	}
	return nil
}

// refusePooler refuses a pooler in transaction mode, before anything is SET on sessions that may belong to others. Behind a
// pooler the process that answers is not the one announced at login, in session mode too: which mode it is shows by
// behaviour, with a second connection. What is done for the portable schema, once it is there, a pooler does not disturb; and an engine
// need not know of processes.
func refusePooler(ctx context.Context, conn *pgx.Conn, config *pgxpool.Config) error {
	var pid int64
	err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_backend_pid()").Scan(&pid)
	switch {
	case pgerr.Code(err) == pgerr.UndefinedFunction:
		return nil
	case err != nil:
		return fmt.Errorf("look for a pooler: %w", err)
	case pid <= 0, pid == int64(conn.PgConn().PID()):
		return nil
	}
	if there, err := there(ctx, conn); err != nil || there == portableSet {
		return err
	}
	other, err := open(ctx, config)
	if err != nil {
		return fmt.Errorf("open a second connection, to look for a pooler: %w", err)
	}
	defer Close(ctx, other)
	if err := session.ProbePooler(ctx, conn.PgConn(), other.PgConn(), strconv.FormatInt(pid, 10)); err != nil {
		return refuse(err, "%s", strings.TrimPrefix(err.Error(), "pgbaton: "))
	}
	return nil
}

// Close ends the connection, also when the caller's context has ended.
func Close(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // the connection is gone in any case
}
