// Package doctor looks at a database as a service would that takes locks in it, and says in plain words what is wrong and what to do.
//
// It reads, and changes nothing but what every client does: where no engine is recorded, nothing is recorded by a look. Each check has its
// finding also when all is well. What the role may not see is said, not guessed.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
)

// Level is how bad a finding is.
type Level int

// The levels are the exit statuses of the command.
const (
	OK Level = iota
	Warning
	Error
)

func (l Level) String() string { return [...]string{"ok", "warning", "error"}[l] }

// MarshalText has a level in JSON as its word.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is one thing that was looked at.
type Finding struct {
	Topic string   `json:"topic"`
	Level Level    `json:"level"`
	Says  string   `json:"says"`
	Do    string   `json:"do,omitempty"`
	SQL   []string `json:"sql,omitempty"` // statements that mend it
}

// Config is what a service would be, and how to reach its database.
type Config struct {
	Connect  func(context.Context) (*pgx.Conn, error)
	Open     func(context.Context) (*pgbaton.Client, func(), error)
	Replicas int
	MaxConns int
	TTL      time.Duration
}

// Worst returns the highest level of findings.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Level)
	}
	return worst
}

// examination is one run.
type examination struct {
	Config

	ctx      context.Context //nolint:containedctx // of the call
	conn     *pgx.Conn
	portable bool // the schema is the portable one
	findings []Finding
}

// Examine looks at everything. It goes on after what it finds, as long as there is a connection.
func Examine(ctx context.Context, cfg Config) []Finding {
	e := &examination{Config: cfg, ctx: ctx}
	conn, err := cfg.Connect(ctx)
	if err != nil {
		e.add(Finding{Topic: "connection", Level: Error, Says: err.Error(), Do: "Mend the address, the network or the password; nothing else was looked at."})
		return e.findings
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	e.conn = conn
	e.server()
	e.client()
	e.schema()
	for _, look := range []struct {
		topic string
		check func() error
	}{
		{"engine", e.engine},
		{"privileges", e.privileges},
		{"connections", e.connections},
		{"lock table", e.lockTable},
		{"waiting", e.waiting},
		{"clock", e.clock},
		{"round trip", e.roundTrip},
		{"idle transactions", e.idleTransactions},
		{"prepared transactions", e.preparedTransactions},
		{"rows", e.rows},
		{"stale rows", e.stale},
	} {
		if err := look.check(); err != nil {
			e.add(Finding{Topic: look.topic, Level: Warning, Says: fmt.Sprintf("It could not be looked at: %v", err)})
		}
	}
	return e.findings
}

func (e *examination) add(f Finding) { e.findings = append(e.findings, f) }

// server looks at what answers.
func (e *examination) server() {
	pg := e.conn.PgConn()
	address := e.conn.Config().Host
	if port := e.conn.Config().Port; address != "" && address[0] != '/' {
		address = net.JoinHostPort(address, strconv.Itoa(int(port)))
	}
	f := Finding{Topic: "server", Says: fmt.Sprintf("PostgreSQL %s at %s, database %s, role %s.",
		pg.ParameterStatus("server_version"), address, e.conn.Config().Database, e.conn.Config().User)}
	if pg.ParameterStatus("in_hot_standby") == "on" {
		f.Level = Error
		f.Says += " It is a standby: its locks exclude nobody on the primary."
		f.Do = "Connect to the primary: add target_session_attrs=read-write to the URL."
	}
	e.add(f)
}

// client opens a client, and adds what it has found out.
func (e *examination) client() {
	client, end, err := e.Open(e.ctx)
	if err != nil {
		e.add(refusal(err))
		if errors.Is(err, pgbaton.ErrPooler) {
			e.add(e.pool())
		}
		return
	}
	defer end()
	d, err := client.Diagnose(e.ctx)
	if err != nil {
		e.add(Finding{Topic: "client", Level: Error, Says: err.Error()})
		return
	}
	e.add(Finding{Topic: "client", Says: fmt.Sprintf("A client can be opened, and takes locks by the engine %q.", d.Engine)})
	e.add(e.pooler(d))
	if d.Pooler != "none" {
		e.add(e.pool())
	}
	if len(d.Refused) == 0 {
		e.add(Finding{Topic: "protections", Says: fmt.Sprintf(
			"The server frees what a silent client holds after %v.", d.TTL)})
		return
	}
	for setting, reason := range d.Refused {
		do := "Locks exclude as well, but those behind a dead network are free later. Have the server's operator allow it to be set."
		if setting == "idle_session_timeout" {
			do = "Locks exclude as well, but those of a process that is frozen are not freed. Have the server's operator allow it to be set."
		}
		e.add(Finding{Topic: "protections", Level: Warning, Says: fmt.Sprintf("The server refuses to set %s = %s: %s.",
			setting, d.Protections[setting], reason), Do: do})
	}
}

// pooler says what is between client and server.
func (e *examination) pooler(d pgbaton.Diagnosis) Finding {
	f := Finding{Topic: "pooler", Says: "None: the client has sessions of its own."}
	switch {
	case d.Portable:
		f.Level, f.Says = Warning, fmt.Sprintf("The schema is the portable one, and locks are leases: %v.", d.NoSession)
		f.Do = fmt.Sprintf("What a dead process held is free after its TTL (%v), and waiting processes look every 100 ms. If that is too slow: a smaller TTL.", d.TTL)
	case d.Pooler == "transaction":
		f.Level, f.Says = Warning, fmt.Sprintf("There is one in transaction mode, so locks are leases (%v).", d.NoSession)
		f.Do = fmt.Sprintf("It works; what a dead process held is free after its TTL (%v) and not at once. The pool must have a connection "+
			"within a third of the TTL for each of %d clients. For locks of sessions connect to the server itself.", d.TTL, e.Replicas)
	case d.Pooler == "session":
		f.Says = "There is one in session mode."
		f.Do = fmt.Sprintf("Each client occupies up to %d of its server connections: %d replicas need a pool of %d beside what the service takes.",
			e.MaxConns, e.Replicas, e.Replicas*e.MaxConns)
	}
	return f
}

// refusal is the finding of a client that could not be opened.
func refusal(err error) Finding {
	f := Finding{Topic: "client", Level: Error, Says: err.Error()}
	switch {
	case errors.Is(err, pgbaton.ErrSchema):
		f.Topic = "schema"
	case errors.Is(err, pgbaton.ErrPooler):
		f.Topic, f.Do = "pooler", "Connect to the server itself; or, if the pooler is in session mode, say so: --session-pooler, Config.SessionPooler."
	case errors.Is(err, pgbaton.ErrStandby):
		f.Topic, f.Do = "server", "Connect to the primary."
	case errors.Is(err, pgbaton.ErrEngine):
		f.Topic, f.Do = "engine", "Let Config.Engine follow the record, or change it: pgbaton migrate engine."
	case errors.Is(err, pgbaton.ErrUnsupportedServer):
		f.Topic, f.Do = "server", "PostgreSQL 14 or later is needed, or an engine that runs the portable schema."
	}
	return f
}
