package pgbaton

import (
	"context"
	"errors"
	"time"

	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Diagnosis is what a client has found out about its server; see [Client.Diagnose].
type Diagnosis struct {
	Server   string        // the server's version, in its own words
	Schema   int           // the version of the schema pgbaton
	Engine   string        // by which processes exclude one another: "session", or "" for a client that is reduced
	Pooler   string        // between client and server: "none", "session" as Config.SessionPooler says, or "transaction"
	Reduced  error         // why the client has no locks of its own; nil if it has
	TTL      time.Duration // after which a client that has fallen silent loses what it holds
	MaxConns int           // the most connections of the client
	Conns    int           // the connections that are open or being opened

	// Protections are the settings by which the server frees what a silent client holds, such as idle_session_timeout,
	// with the values that the client asks for.
	Protections map[string]string

	// Refused has the protections that the server does not let the client set, with the server's reasons. Locks exclude
	// as well without them. But without idle_session_timeout the locks of a frozen process are not freed, and without the
	// other settings the locks behind a dead network are freed later.
	Refused map[string]string
}

// ground is what a session found out about its server.
type ground struct {
	server      string
	schema      int
	protections []session.Protection
}

// Diagnose returns what the client found when it opened its newest connection for locks. It asks the server only if the
// client has none: one that is reduced then opens its connection for rows. If [Config.MaxConns] leaves it none, the
// server's version and the schema's are not known.
//
// The error matches [ErrClosed] after Close.
func (c *Client) Diagnose(ctx context.Context) (Diagnosis, error) {
	g, err := c.findGround(ctx)
	if err != nil {
		return Diagnosis{}, wrap(err, "diagnose")
	}
	d := Diagnosis{
		Server: g.server, Schema: g.schema, Engine: "session", Pooler: "none", Reduced: c.reduced,
		TTL: c.cfg.TTL, MaxConns: c.cfg.MaxConns, Conns: c.budget.Taken(),
		Protections: map[string]string{}, Refused: map[string]string{},
	}
	switch {
	case errors.Is(c.reduced, ErrPooler):
		d.Pooler = "transaction"
	case c.cfg.SessionPooler:
		d.Pooler = "session"
	}
	if c.reduced != nil {
		d.Engine = ""
	}
	for _, p := range g.protections {
		d.Protections[p.Setting] = p.Value
		if p.Refused != "" {
			d.Refused[p.Setting] = p.Refused
		}
	}
	return d, nil
}

var stmtNothing = &pipeline.Statement{Name: "pgbaton_nothing", SQL: "SELECT"}

// findGround returns the ground, and opens a session to find it if there was none yet.
func (c *Client) findGround(ctx context.Context) (*ground, error) {
	if err := c.made(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	g, closed := c.ground, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case g != nil:
		return g, nil
	}
	if c.thirdConnection() != nil {
		return &ground{}, nil
	}
	if _, err := c.rows(ctx, stmtNothing); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ground, nil
}

// note keeps what a session found.
func (c *Client) note(s *session.Session) {
	g := &ground{server: s.PgConn().ParameterStatus("server_version"), schema: s.Server.Schema, protections: s.Protections}
	c.mu.Lock()
	c.ground = g
	c.mu.Unlock()
}
