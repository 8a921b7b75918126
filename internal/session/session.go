// Package session opens the client's own connections and makes sure of the server behind them.
//
// Every connection of the client comes from [Dialer.Dial], which runs the caller's hooks, looks for a
// pooler before anything is SET, pins the session's settings and checks server, schema, privileges
// and tokens. What it guarantees: a session that Dial returned is a session of its own on a primary
// whose schema serves this client and whose token sequence can be trusted, the same primary that all other sessions of
// the client are on (see [Home]), and the server ends it
// when nothing was heard from the client for the idle time of its role. What it does not: that any
// of this is still so later. A session that is lost, and a server that restarts, fails over or loses the
// token sequence, ends the session; the next Dial looks again. What only an owner of the schema could have changed, or the role's
// grantor, it takes from another session's look of the last minute, if that was the same role's on the same run of the same server.
//
// A dial takes two round trips after the login and the caller's hook, one more if that look turns out to be no use, five if it tries out a pooler that is said to be in
// session mode (seven when the client has no server yet), and at most [openTimeout].
package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/dsn"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// Role is what a session is for; it decides how long the session may be idle.
type Role uint8

const (
	Holding Role = iota // holds the granted locks, never waits
	Waiting             // waits, holds nothing
	Sidecar             // keeps rows, waits for next to nothing
)

// Dialer opens sessions.
type Dialer struct {
	Config        *pgx.ConnConfig // never altered; each Dial works on a copy
	BeforeConnect func(context.Context, *pgx.ConnConfig) error
	AfterConnect  func(context.Context, *pgx.Conn) error
	SessionPooler bool          // the caller knows of a pooler in session mode
	TTL           time.Duration // the server ends a session for locks after so much silence
	Name          string        // of the client, for pg_stat_activity
	Home          *Home         // the server that all its sessions are on
	Portable      bool          // the database has the portable schema: see [PortableError]
}

// Session is an open, checked connection. Its owner closes it.
type Session struct {
	*pgx.Conn

	Server      Server
	Record      Record
	Protections []Protection
	Pooled      bool      // it may be another session of the server's in each transaction, see DialPooled
	Relayed     bool      // a pooler is in between, in whatever mode
	Portable    bool      // it is pooled, and the server may lack all that engines besides PostgreSQL lack
	Repaired    bool      // this session found the token sequence in doubt and moved it, though it had been used
	Drawn       int64     // what the token sequence was at, after that
	Heard       time.Time // when the last message was sent that the server has answered

	home   *Home
	member *member // nil if pooled: transactions may go to any server
}

// Dial opens a session for a role, runs commands on it and lets it into the dialer's home. On failure nothing is left
// open. The error names host and port, never a password, and matches one of the sentinels when the ground is wrong.
func (d *Dialer) Dial(ctx context.Context, role Role, commands ...Command) (*Session, error) {
	return d.dial(ctx, false, func(ctx context.Context, s *Session) error {
		return d.prepare(ctx, s, role, nil, commands)
	})
}

// DialProbed is [Dialer.Dial] that also tries out, with a second connection for a moment, whether sessions are what they
// seem: that no pooler shares them, and that advisory locks exclude.
func (d *Dialer) DialProbed(ctx context.Context, role Role, commands ...Command) (*Session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errSlow)
	w := d.callWitness(ctx)
	defer w.dismiss()
	defer cancel() // a witness that is still being called is not needed
	return d.dial(ctx, false, func(ctx context.Context, s *Session) error {
		return d.prepare(ctx, s, role, w, commands)
	})
}

// DialPooled opens a connection that need not be a session of its own: behind a pooler each transaction may run
// in another one. So nothing is set on it, no protection is asked for, and the tokens must be looked at in each
// transaction that draws one.
func (d *Dialer) DialPooled(ctx context.Context, commands ...Command) (*Session, error) {
	return d.dial(ctx, true, func(ctx context.Context, s *Session) error {
		if d.Portable {
			return s.preparePortable(ctx, commands)
		}
		return s.preparePooled(ctx, commands)
	})
}

// preparePooled makes a fresh connection ready that may be another session of the server's in each transaction.
func (s *Session) preparePooled(ctx context.Context, commands []Command) error {
	found, err := inspect(ctx, s.PgConn(), s.home)
	if err != nil {
		return err
	}
	s.Server = found.server
	s.Heard = time.Now()
	answers, err := s.fly(ctx, append([]Command{readVersion, readRecord, askIdentity}, commands...))
	if err != nil {
		return err
	}
	if s.Server.Schema, err = checkSchemaVersion(answers[0], ClientVersion); err != nil {
		return err
	}
	if s.Record, err = recordOf(answers[1]); err != nil {
		return err
	}
	identity, err := answers[2].only()
	if err != nil {
		return err
	}
	if s.Server.Identity = identity[0]; !found.known {
		s.home.looked(s.Server, found.role)
	}
	return firstFailure(commands, answers[3:])
}

// openTimeout bounds the opening of a session, so that a server that is silent does not hold its caller for ever. It has
// nothing to do with the TTL, which may be short where the network is slow.
const openTimeout = 15 * time.Second

// maxApplicationName is how many bytes of it PostgreSQL keeps.
const maxApplicationName = 63

// config is the config of a new connection, as BeforeConnect wants it.
func (d *Dialer) config(ctx context.Context) (*pgx.ConnConfig, error) {
	cfg := d.Config.Copy()
	if d.BeforeConnect != nil {
		if err := d.BeforeConnect(ctx, cfg); err != nil {
			return nil, fmt.Errorf("connect: BeforeConnect: %w", err)
		}
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = applicationName(d.Name)
	}
	// Names are sent as UTF-8. Poolers know these two parameters.
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	return cfg, nil
}

// applicationName is what sessions are called in pg_stat_activity if nobody has given them a name.
func applicationName(client string) string {
	name := "pgbaton"
	if client != "" {
		name += "/" + client
	}
	for i := range name { // the beginnings of its characters
		if next := i + utf8.RuneLen([]rune(name[i:])[0]); next > maxApplicationName {
			return name[:i]
		}
	}
	return name
}

// dial opens a connection, makes it ready and lets it in.
func (d *Dialer) dial(ctx context.Context, pooled bool, prepare func(context.Context, *Session) error) (*Session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errSlow)
	defer cancel()
	visit := d.Home.visit()
	cfg, err := d.config(ctx)
	if err != nil {
		return nil, err
	}
	opened := d.tameCancels(cfg, pooled)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, because(ctx, dsn.Connect(err)) // which has the address
	}
	opened.Store(true)
	s := &Session{Conn: conn, home: d.Home, Pooled: pooled, Relayed: pooled || d.SessionPooler}
	err = d.afterConnect(ctx, s)
	if err == nil {
		err = prepare(ctx, s)
	}
	if err == nil && !s.Pooled {
		s.member, err = d.Home.enter(s.Server.Identity, visit, func(error) { closeRaw(conn) })
	}
	if err != nil {
		spoilIfForeign(conn.PgConn(), err)
		Close(conn) //nolint:contextcheck // also when ctx has ended
		return nil, fmt.Errorf("%w (server %s)", because(ctx, err), address(cfg))
	}
	return s, nil
}

var errSlow = fmt.Errorf("the server took longer than %v", openTimeout)

// because adds why a dial's context has ended, if that says more than its error.
func because(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSlow) {
		return fmt.Errorf("%w: %w", errSlow, err)
	}
	return pgerr.Explain(err)
}

// closeRaw ends a connection that somebody may be using.
func closeRaw(conn *pgx.Conn) { _ = conn.PgConn().Conn().Close() }

// prepare makes a fresh connection fit for its role, in two round trips: one looks, and changes nothing, because the
// session may turn out to be somebody else's too; one sets, checks what needs the schema, and runs the commands. A pooler
// that is said to be in session mode is tried out in between.
func (d *Dialer) prepare(ctx context.Context, s *Session, role Role, w *witness, commands []Command) error {
	found, err := inspect(ctx, s.PgConn(), d.Home)
	if err != nil {
		return err
	}
	if err := d.refusePooler(s.Conn, found.backend); err != nil {
		return err
	}
	s.Server = found.server
	var probe []Command
	if w != nil {
		if probe, err = w.testify(ctx, s.PgConn(), found.backend, d.SessionPooler, d.Home.Identity() == ""); err != nil {
			return err
		}
	}
	settings := d.settings(role, s.Server)
	flight := pins(settings)
	flight = append(flight, schemaChecks...)
	flight = append(flight, commands...)
	flight = append(flight, probe...)
	s.Heard = time.Now()
	answers, err := flyOn(ctx, s.PgConn(), s.Relayed, flight)
	if err != nil {
		return err
	}
	next := func(n int) []answer {
		part := answers[:n]
		answers = answers[n:]
		return part
	}
	if s.Protections, err = pinned(settings, next(len(settings))); err != nil {
		return err
	}
	if err := s.check(next(len(schemaChecks))); err != nil {
		return err
	}
	if !found.known {
		d.Home.looked(s.Server, found.role)
	}
	if err := firstFailure(commands, next(len(commands))); err != nil {
		return err
	}
	if w != nil {
		return w.judge(ctx, s.Server.Identity, answers)
	}
	return nil
}

// firstFailure explains the first of the commands that failed.
func firstFailure(commands []Command, answers []answer) error {
	for i, a := range answers {
		if a.err != nil {
			return fmt.Errorf("%s: %w", commands[i].What, pgerr.Schema(a.err))
		}
	}
	return nil
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
func (d *Dialer) refusePooler(conn *pgx.Conn, backend string) error {
	if d.SessionPooler || backend == strconv.FormatUint(uint64(conn.PgConn().PID()), 10) {
		return nil
	}
	return fmt.Errorf("%w: the server process that answers (%s) is not the one announced at login (%d); "+
		"in transaction mode a pooler would give this session's locks to others. Connect to the server itself, or, "+
		"if the pooler is in session mode, set Config.SessionPooler",
		lockerr.Pooler, backend, conn.PgConn().PID())
}

// OnMove has end called, instead of the connection being closed, when the client moves to another server. It returns
// when the holders of what the session held were told.
func (s *Session) OnMove(end func(cause error)) {
	if s.member != nil {
		s.member.onExpel(end)
	}
}

// Left reports that the connection is closed.
func (s *Session) Left() {
	if s.member != nil {
		s.home.remove(s.member)
	}
}

// HangUp closes the connection, see [Close].
func (s *Session) HangUp() {
	Close(s.Conn)
	s.Left()
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

// queryRow runs statements without parameters, whatever query mode the caller's config asks for, and returns the only
// row of the last one as text; an SQL NULL becomes "". It does not know yet whether a pooler is in between, and makes sure of the answer,
// see [ErrForeign]. What the role's statement_timeout has ended is sent again: the statements lift it.
func queryRow(ctx context.Context, conn *pgconn.PgConn, sql string) ([]string, error) {
	number := Number()
	sql = "SELECT " + strconv.FormatInt(number, 10) + ";" + sql
	results, err := conn.Exec(ctx, sql).ReadAll()
	for attempt := 1; attempt < patience && pgerr.Passing(err); attempt++ {
		if conn.TxStatus() != 'I' {
			return nil, err
		}
		results, err = conn.Exec(ctx, sql).ReadAll()
	}
	if !broken(conn, err) && !pgerr.Passing(err) && (len(results) == 0 || !echoed(results[0].Rows, number)) {
		return nil, errors.Join(ErrForeign, err)
	}
	if err != nil {
		return nil, err
	}
	if len(results[len(results)-1].Rows) != 1 {
		return nil, errNotOneRow
	}
	return texts(results[len(results)-1].Rows[0]), nil
}
