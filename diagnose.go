package pgbaton

import (
	"context"
	"errors"
	"time"

	"github.com/pgbaton/pgbaton/internal/session"
)

// Diagnosis is what a client has found out about its server; see [Client.Diagnose].
type Diagnosis struct {
	Server    string        // the server's version, in its own words
	Schema    int           // the version of the schema pgbaton
	Engine    string        // by which processes exclude one another: "session", "lease", or "both" on the way between them
	Pooler    string        // between client and server: "none", "session" as Config.SessionPooler says, or "transaction"
	Portable  bool          // the schema is the portable one, for the reason that NoSession has
	NoSession error         // why the client has no session of its own, so that what a dead process holds is free after TTL; nil if it has
	TTL       time.Duration // after which a client that has fallen silent loses what it holds
	MaxConns  int           // the most connections of the client
	Conns     int           // the connections that are open or being opened

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

// Diagnose returns what the client found when it opened its newest connection for locks. It asks no server.
//
// The error matches [ErrClosed] after Close.
func (c *Client) Diagnose(ctx context.Context) (Diagnosis, error) {
	g, err := c.findGround(ctx)
	if err != nil {
		return Diagnosis{}, wrap(err, "diagnose")
	}
	d := Diagnosis{
		Server: g.server, Schema: g.schema, Engine: c.engine, Pooler: "none", Portable: c.dialer.Portable, NoSession: c.pooled,
		TTL: c.cfg.TTL, MaxConns: c.cfg.MaxConns, Conns: c.budget.Taken(),
		Protections: map[string]string{}, Refused: map[string]string{},
	}
	switch {
	case errors.Is(c.pooled, ErrPooler):
		d.Pooler = "transaction"
	case c.cfg.SessionPooler:
		d.Pooler = "session"
	}
	for _, p := range g.protections {
		d.Protections[p.Setting] = p.Value
		if p.Refused != "" {
			d.Refused[p.Setting] = p.Refused
		}
	}
	return d, nil
}

// findGround returns the ground.
func (c *Client) findGround(ctx context.Context) (*ground, error) {
	if err := c.made(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	return c.ground, ctx.Err()
}

// note keeps what a session found.
func (c *Client) note(s *session.Session) {
	g := &ground{server: s.PgConn().ParameterStatus("server_version"), schema: s.Server.Schema, protections: s.Protections}
	c.mu.Lock()
	c.ground = g
	c.mu.Unlock()
}
