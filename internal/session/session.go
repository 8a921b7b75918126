// Package session opens the client's own connections and makes sure of the ground they stand on.
//
// Every connection of the client comes from [Dialer.Dial], which runs the caller's hooks, looks for a
// pooler before anything is SET, pins the session's settings and checks server, schema, privileges
// and tokens. What it guarantees: a session that Dial returned is a session of its own on a primary
// whose schema serves this client and whose token sequence can be trusted, and the server ends it
// when nothing was heard from the client for the idle time of its role. What it does not: that any
// of this is still so later. A session that is lost, and a server that restarts, fails over or loses the
// token sequence, ends the session; the next Dial looks again.
package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Role is what a session is for; it decides how long the session may be idle.
type Role uint8

const (
	Link    Role = iota // holds the granted locks, never waits
	Waiting             // waits, holds nothing
	Ledger              // keeps rows, waits for next to nothing
)

// Dialer opens sessions.
type Dialer struct {
	Config        *pgx.ConnConfig // never altered; each Dial works on a copy
	BeforeConnect func(context.Context, *pgx.ConnConfig) error
	AfterConnect  func(context.Context, *pgx.Conn) error
	SessionPooler bool          // the caller knows of a pooler in session mode
	TTL           time.Duration // the server ends a link after so much silence
}

// Session is an open, checked connection. Its owner closes it.
type Session struct {
	*pgx.Conn

	Server      Server
	Protections []Protection
	Pooled      bool // it may be another session of the server's in each transaction, see DialPooled
	Repaired    bool // this session found the token sequence in doubt and moved it, though it had been used
}

// Dial opens a session for a role. On failure nothing is left open. The error names host and port,
// never a password, and matches one of the sentinels when the ground is wrong.
func (d *Dialer) Dial(ctx context.Context, role Role) (*Session, error) {
	return d.dial(ctx, role, nil)
}

// DialProbed is Dial that also tries out, with a second connection for a moment, whether sessions are what they
// seem: that no pooler shares them, and that advisory locks exclude.
func (d *Dialer) DialProbed(ctx context.Context, role Role) (*Session, error) {
	other, err := d.second(ctx)
	if err != nil {
		return nil, err
	}
	defer Close(other)
	return d.dial(ctx, role, other.PgConn())
}

// DialPooled opens a connection that need not be a session of its own: behind a pooler each transaction may run
// in another one. So nothing is set on it, no protection is asked for, and the tokens must be looked at in each
// transaction that draws one.
func (d *Dialer) DialPooled(ctx context.Context) (*Session, error) {
	return d.connect(ctx, func(s *Session) error {
		s.Pooled = true
		if err := d.afterConnect(ctx, s); err != nil {
			return err
		}
		var err error
		if s.Server, err = inspect(ctx, s.PgConn()); err != nil {
			return err
		}
		return requireReadCommitted(ctx, s.PgConn())
	})
}

// requireReadCommitted refuses a default under which a statement does not see what others have just committed.
func requireReadCommitted(ctx context.Context, conn *pgconn.PgConn) error {
	row, err := queryRow(ctx, conn, "SHOW default_transaction_isolation")
	if err != nil {
		return fmt.Errorf("look at the isolation level: %w", err)
	}
	if row[0] != "read committed" {
		return fmt.Errorf("default_transaction_isolation is %q, and behind a pooler it cannot be set for a session: "+
			`ALTER ROLE … SET default_transaction_isolation = 'read committed'`, row[0])
	}
	return nil
}

// dial opens a session, and probes it with another connection if there is one.
func (d *Dialer) dial(ctx context.Context, role Role, other *pgconn.PgConn) (*Session, error) {
	return d.connect(ctx, func(s *Session) error { return d.prepare(ctx, s, role, other) })
}

// applicationName is what sessions are called in pg_stat_activity if nobody has given them a name. Poolers know the
// parameter.
const applicationName = "pgbaton"

// config is the config of a new connection, as BeforeConnect wants it.
func (d *Dialer) config(ctx context.Context) (*pgx.ConnConfig, error) {
	cfg := d.Config.Copy()
	if d.BeforeConnect != nil {
		if err := d.BeforeConnect(ctx, cfg); err != nil {
			return nil, fmt.Errorf("connect: BeforeConnect: %w", err)
		}
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = applicationName
	}
	return cfg, nil
}

// connect opens a connection and makes it ready.
func (d *Dialer) connect(ctx context.Context, prepare func(*Session) error) (*Session, error) {
	cfg, err := d.config(ctx)
	if err != nil {
		return nil, err
	}
	opened := d.boundCancels(cfg)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address(cfg), err)
	}
	opened.Store(true)
	s := &Session{Conn: conn}
	if err := prepare(s); err != nil {
		Close(conn) //nolint:contextcheck // also when ctx has ended
		return nil, fmt.Errorf("%s: %w", address(cfg), err)
	}
	return s, nil
}

// boundCancels bounds what is dialled once the session is open, which is cancel requests. pgx sends one in the
// background when it gives a connection up, and lets it take 15 s.
func (d *Dialer) boundCancels(cfg *pgx.ConnConfig) *atomic.Bool {
	opened := &atomic.Bool{}
	dial, limit := cfg.DialFunc, min(d.TTL/4, cancelTimeout)
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !opened.Load() {
			return dial(ctx, network, addr)
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		deadline := time.Now().Add(limit)
		conn, err := dial(ctx, network, addr)
		if err == nil {
			err = conn.SetDeadline(deadline)
		}
		return conn, err
	}
	return opened
}

// prepare makes a fresh connection fit for its role.
func (d *Dialer) prepare(ctx context.Context, s *Session, role Role, other *pgconn.PgConn) error {
	if err := d.refusePooler(ctx, s.Conn); err != nil {
		return err
	}
	if d.SessionPooler && other != nil {
		if err := probePooler(ctx, s.PgConn(), other); err != nil {
			return err
		}
	}
	if err := d.afterConnect(ctx, s); err != nil {
		return err
	}
	var err error
	// From here on names mean what they say, whatever the role or AfterConnect has set.
	if _, err := s.PgConn().Exec(ctx, "SET "+namesMeanWhatTheySay).ReadAll(); err != nil {
		return fmt.Errorf("set search_path: %w", err)
	}
	if s.Server, err = inspect(ctx, s.PgConn()); err != nil {
		return err
	}
	if s.Protections, err = pin(ctx, s.PgConn(), d.settings(role, s.Server)); err != nil {
		return err
	}
	// Only now: a role's default_transaction_read_only would refuse the repair. It sees itself to it that it
	// is safe on disk.
	if s.Repaired, err = repairTokens(ctx, s.PgConn()); err != nil || other == nil {
		return err
	}
	return probeLocks(ctx, s.PgConn(), other)
}

// afterConnect runs the caller's hook.
func (d *Dialer) afterConnect(ctx context.Context, s *Session) error {
	if d.AfterConnect == nil {
		return nil
	}
	if err := d.AfterConnect(ctx, s.Conn); err != nil {
		return fmt.Errorf("AfterConnect: %w", err)
	}
	if s.PgConn().TxStatus() != 'I' {
		return errors.New("AfterConnect: it left a transaction open")
	}
	return nil
}

// refusePooler compares the process id that was announced at login with the one that answers. Behind
// PgBouncer and its kin they differ, in session mode too.
func (d *Dialer) refusePooler(ctx context.Context, conn *pgx.Conn) error {
	if d.SessionPooler {
		return nil
	}
	row, err := queryRow(ctx, conn.PgConn(), "SELECT pg_backend_pid()")
	if err != nil {
		return fmt.Errorf("look for a pooler: %w", err)
	}
	if row[0] != strconv.FormatUint(uint64(conn.PgConn().PID()), 10) {
		return fmt.Errorf("%w: the server process that answers (%s) is not the one announced at login (%d); "+
			"in transaction mode a pooler would give this session's locks to others. Connect to the server itself, or, "+
			"if the pooler is in session mode, set Config.SessionPooler",
			lockerr.Pooler, row[0], conn.PgConn().PID())
	}
	return nil
}

// Close ends a connection. It takes a moment at the most when the server does not answer; afterwards socket
// and goroutines are gone.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // it is being thrown away
	// After an error pgx itself is closing it, in the background.
	pg := conn.PgConn()
	select {
	case <-pg.CleanupDone():
	case <-ctx.Done():
		_ = pg.Conn().Close()
		<-pg.CleanupDone()
	}
}

const (
	closeTimeout  = 100 * time.Millisecond // for the polite farewell to the server
	cancelTimeout = 2 * time.Second        // for a cancel request
)

// address names the server for people.
func address(cfg *pgx.ConnConfig) string {
	network, addr := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	if network == "unix" {
		return addr
	}
	return net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
}

// queryRow runs a query without parameters, whatever query mode the caller's config asks for, and returns
// its only row as text; an SQL NULL becomes "". Of several statements it is the last one's.
func queryRow(ctx context.Context, conn *pgconn.PgConn, sql string) ([]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 || len(results[len(results)-1].Rows) != 1 {
		return nil, errors.New("the server did not answer with one row")
	}
	values := results[len(results)-1].Rows[0]
	row := make([]string, len(values))
	for i, value := range values {
		row[i] = string(value)
	}
	return row, nil
}
