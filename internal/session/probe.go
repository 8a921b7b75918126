package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/dsn"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// probeTimeout bounds the look for a pooler: one with a single connection lets the second client wait for ever.
const probeTimeout = 2 * time.Second

// witness is a second connection that shows whether the first one's session is what it seems. It is opened while the
// first one is, and closed when that has been judged.
type witness struct {
	called chan struct{} // closed when conn and err are valid
	conn   *pgx.Conn
	err    error

	key      string // a random one, which the witness holds
	identity string // of its server
}

// callWitness begins to open a plain connection beside the one that is probed, with the caller's hooks.
func (d *Dialer) callWitness(ctx context.Context) *witness {
	w := &witness{called: make(chan struct{})}
	w.key = strconv.FormatInt(rand.Int64(), 10) //nolint:gosec // only to be nobody else's
	go func() {                                 // dismiss waits for it
		defer close(w.called)
		w.conn, w.err = d.second(ctx)
	}()
	return w
}

func (d *Dialer) second(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := d.config(ctx)
	if err != nil {
		return nil, err
	}
	opened := d.tameCancels(cfg, false)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	opened.Store(true)
	if err != nil {
		return nil, fmt.Errorf("one connection is open, but not a second one to try out the locks with: %w", dsn.Connect(err))
	}
	if d.AfterConnect != nil {
		if err := d.AfterConnect(ctx, conn); err != nil {
			Close(conn)
			return nil, fmt.Errorf("AfterConnect: %w", err)
		}
	}
	return conn, nil
}

// dismiss closes the witness' connection.
func (w *witness) dismiss() {
	<-w.called
	if w.conn != nil {
		Close(w.conn)
	}
}

// testify has the witness lock a random key, and returns the commands with which the session that is probed, whose server
// process is backend, shows that it sees that. Behind a pooler that is said to be in session mode it first makes sure of
// the mode, before anything is set or locked on sessions that may belong to others: in one round, or two for the first
// session.
func (w *witness) testify(
	ctx context.Context, conn *pgconn.PgConn, backend string, pooler, first bool,
) ([]Command, error) {
	select {
	case <-w.called:
	case <-ctx.Done():
		return nil, fmt.Errorf("one connection is open, but not a second one to try out the locks with: %w", ctx.Err())
	}
	if w.err != nil {
		return nil, w.err
	}
	other := w.conn.PgConn()
	if pooler {
		rounds := 1
		if first {
			rounds = 2
		}
		if err := probePooler(ctx, conn, other, backend, rounds); err != nil {
			return nil, err
		}
	}
	answers, err := flyOn(ctx, other, pooler, []Command{
		{What: "set statement_timeout", SQL: "SET statement_timeout TO 0"}, // the role's may be too short for a look
		{What: "set idle_session_timeout", SQL: "SET idle_session_timeout TO 0"},
		{What: sayTryOut, SQL: "SELECT pg_catalog.pg_try_advisory_lock(" + w.key + ")"},
		askIdentity,
	})
	if err == nil {
		err = answers[2].err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sayTryOut, err)
	}
	if row, err := answers[2].only(); err != nil || row[0] != "t" {
		return nil, fmt.Errorf("%w: it refuses a lock on a free key", lockerr.UnsupportedServer)
	}
	if row, err := answers[3].only(); err == nil { // else the schema is an older one, which another check reports
		w.identity = row[0]
	}
	free := strconv.FormatInt(rand.Int64(), 10) //nolint:gosec // only to be nobody else's
	return []Command{
		{What: sayTryOut, SQL: "SELECT pg_catalog.pg_try_advisory_lock(" + w.key + ")"},
		{What: sayTryOut, SQL: "SELECT CASE WHEN pg_catalog.pg_try_advisory_lock(" + free + ") THEN pg_catalog.pg_advisory_unlock(" + free + ") END"},
		{What: sayTryOut, SQL: "SELECT pg_catalog.pg_try_advisory_xact_lock_shared(" + w.key + ")"},
		{What: sayTryOut, SQL: "SELECT pg_catalog.pg_try_advisory_xact_lock_shared(" + free + ")"},
	}, nil
}

const sayTryOut = "try out the server's advisory locks"

// judge takes the answers to the commands of testify, which the session that is probed has run on the server of an
// identity. Locks of sessions and of transactions are two questions: an engine has the one and not the other, and another accepts the
// functions and does nothing. That one key was granted twice is believed only
// if the witness still holds the key: the server may have ended the witness' session meanwhile.
func (w *witness) judge(ctx context.Context, identity string, answers []answer) error {
	if w.identity != "" && w.identity != identity {
		return fmt.Errorf("two connections to one address reached two servers, %s and %s", identity, w.identity)
	}
	for i, a := range answers {
		row, err := a.only()
		if pgerr.Code(err) == pgerr.UndefinedFunction {
			return fmt.Errorf("%w: %s: %w", lockerr.UnsupportedServer, sayTryOut, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sayTryOut, err)
		}
		if row[0] == [...]string{"f", "t", "f", "t"}[i] {
			continue
		}
		mistake := [...]string{
			"grants one key to two sessions", "has forgotten a lock that was just granted",
			"grants a transaction a key that another session has", "refuses a lock on a free key",
		}[i]
		switch {
		case i == 0, i == 2: // about the witness' key
			if err := w.holds(ctx); err != nil {
				return err
			}
		case row[0] == "": // it was not even granted
			mistake = "refuses a lock on a free key"
		}
		return fmt.Errorf("%w: it %s", lockerr.UnsupportedServer, mistake)
	}
	return nil
}

// holds returns an error if the witness' session no longer lives or no longer has its key.
func (w *witness) holds(ctx context.Context) error {
	row, err := queryRow(ctx, w.conn.PgConn(), "SELECT pg_catalog.pg_advisory_unlock("+w.key+")")
	if err == nil && row[0] != "t" {
		err = errors.New("the session is no longer the same")
	}
	if err != nil {
		return fmt.Errorf("%s: the second connection, which the locks were to be tried out with, was lost: %w", sayTryOut, err)
	}
	return nil
}

// sqlBackend sets nothing beyond its transaction: the role's timeout may be too short for a look.
const sqlBackend = "SET LOCAL statement_timeout = 0; SELECT pg_catalog.pg_backend_pid()"

// probePooler tells a pooler in transaction mode from one in session mode by behaviour: it looks whether two connections
// ever share a server process, and whether one keeps its own, which was first, while the other is in a transaction.
func probePooler(ctx context.Context, conn, other *pgconn.PgConn, first string, rounds int) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for range rounds {
		theirs, err := queryRow(ctx, other, "BEGIN; "+sqlBackend)
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("the pooler gives no server connection to a second client within %v: its pool is full, or too small; "+
				"each client needs up to Config.MaxConns: %w", probeTimeout, err)
		case err != nil:
			return fmt.Errorf("look for a pooler: %w", err)
		}
		mine, err := queryRow(ctx, conn, sqlBackend)
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("%w: one connection gets no answer while another has a transaction open, as in transaction "+
				"mode: %w", lockerr.Pooler, err)
		case err != nil:
			return fmt.Errorf("look for a pooler: %w", err)
		case theirs[0] == first || mine[0] != first:
			return fmt.Errorf("%w: it is in transaction mode: its connections share server processes (%s, %s, then %s), "+
				"and would share locks. Connect to the server itself, or through a pool in session mode",
				lockerr.Pooler, first, theirs[0], mine[0])
		}
		if _, err := other.Exec(ctx, "COMMIT").ReadAll(); err != nil {
			return fmt.Errorf("look for a pooler: %w", err)
		}
	}
	return nil
}
