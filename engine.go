package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/leaseengine"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/sessionengine"
)

const (
	// heldPerAnchor is how many locks a session holds before another one is opened.
	heldPerAnchor = 1000
	// minPooledTTL is the least TTL behind a pooler: renewals are a third of it, and wait for a connection of the pooler's.
	minPooledTTL = 2 * time.Second
	// lockTableShare is of how many of the lock table's places a client may hold one.
	lockTableShare = 8
	// engineBoth is the third record: a lock is a lease and an advisory lock.
	engineBoth Engine = "both"
)

// open finds the engine that config, record and ground agree on, and opens the first connection of it.
func (c *Client) open(ctx context.Context) error {
	if err := c.choose(ctx); err != nil {
		return err
	}
	c.opened.Store(true)
	return nil
}

func (c *Client) choose(ctx context.Context) error {
	if c.cfg.Engine == EngineLease {
		return c.openLeases(ctx)
	}
	err := c.attempt(ctx, c.openSessions)
	other := (*session.EngineError)(nil)
	auto := c.cfg.Engine == EngineAuto
	switch {
	case errors.As(err, &other) && (auto || other.Record.Engine == string(engineBoth)):
		return c.openLeases(ctx)
	case auto && (errors.Is(err, ErrPooler) || errors.Is(err, ErrUnsupportedServer)):
		return c.openPooled(ctx, err)
	}
	return err
}

// openAttempts is how often New opens its first session when the server ends it meanwhile.
const openAttempts = 5

// attempt calls open, and again if the server ends the session meanwhile.
func (c *Client) attempt(ctx context.Context, open func(context.Context) error) error {
	for attempt := 1; ; attempt++ {
		err := open(ctx)
		if err == nil || !pgerr.SessionEnded(err) || attempt == openAttempts || backoff.Wait(ctx, attempt) != nil {
			return err
		}
	}
}

func (c *Client) openSessions(ctx context.Context) (err error) {
	sessions := sessionengine.New(sessionengine.Config{
		Name: c.cfg.Name, TTL: c.cfg.TTL, PerAnchor: heldPerAnchor, MaxAnchors: c.cfg.MaxConns - 1, Budget: c.budget,
		Dial: c.dialHolding, Wait: c.dialWaiting, Report: c.journal.Report, Notified: c.notified,
	})
	c.engine = string(EngineSession)
	if c.locks, err = lockmgr.New(ctx, lockmgr.Config{Engine: sessions, MaxHeld: c.cfg.MaxHeld, Report: c.journal.Report}); err != nil {
		return err
	}
	c.sessions = sessions
	return nil
}

// openLeases opens an engine of leases with a session of its own, or of both if that is recorded; where the ground has no
// sessions, without.
func (c *Client) openLeases(ctx context.Context) error {
	c.engine = string(EngineLease)
	err := c.attempt(ctx, c.startLeases)
	if other := (*session.EngineError)(nil); errors.As(err, &other) && other.Record.Engine == string(engineBoth) {
		c.engine = string(engineBoth)
		return c.attempt(ctx, c.startLeases)
	}
	if errors.Is(err, ErrPooler) || errors.Is(err, ErrUnsupportedServer) {
		return c.openPooled(ctx, err)
	}
	return err
}

// openPooled opens an engine of leases on ground that has no sessions, for a reason.
func (c *Client) openPooled(ctx context.Context, reason error) error {
	c.engine = string(EngineLease)
	if errors.Is(reason, ErrPooler) && c.cfg.TTL < minPooledTTL {
		return fmt.Errorf("pgbaton: Config.TTL is %v; through a pooler the least is %v, because leases are renewed three times in it, and each "+
			"renewal may wait for a connection of the pooler's: %w", c.cfg.TTL, minPooledTTL, reason)
	}
	c.pooled = reason
	c.dialer.Portable = errors.As(reason, new(*session.PortableError))
	if err := c.attempt(ctx, c.startLeases); err != nil {
		return fmt.Errorf("%w; leases, because: %w", err, reason)
	}
	c.journal.Log(slog.LevelInfo, "locks are leases, because the client has no session of its own", reason)
	return nil
}

func (c *Client) startLeases(ctx context.Context) (err error) {
	cfg := leaseengine.Config{
		TTL: c.cfg.TTL, Name: c.cfg.Name, Pooled: c.pooled != nil, Both: c.engine == string(engineBoth), Budget: c.budget,
		Dial: c.dialLeases, Report: c.journal.Report, Notified: c.notified,
	}
	if cfg.Both {
		cfg.Capacity = func() int { return int(c.lockTable.Load()) / lockTableShare }
	}
	c.locks, err = lockmgr.New(ctx, lockmgr.Config{Engine: leaseengine.New(cfg), MaxHeld: c.cfg.MaxHeld, Report: c.journal.Report})
	return err
}

// dialHolding opens a session that will hold locks, and tries it out when a second connection is to be had for it: always
// for the first, nearly always later.
func (c *Client) dialHolding(ctx context.Context) (*session.Session, error) {
	return c.dialOwn(ctx, session.Holding)
}

// dialWaiting opens a session that will wait.
func (c *Client) dialWaiting(ctx context.Context) (*session.Session, error) {
	return c.dialer.Dial(ctx, session.Waiting)
}

// dialLeases opens a connection for leases. A session waits for locks on rows no longer than the sidecar's does.
func (c *Client) dialLeases(ctx context.Context, commands ...session.Command) (*session.Session, error) {
	if c.pooled == nil {
		return c.dialOwn(ctx, session.Sidecar, commands...)
	}
	s, err := c.dialer.DialPooled(ctx, commands...)
	if err != nil {
		return nil, err
	}
	if err := c.agree(s); err != nil {
		return nil, err
	}
	c.note(s)
	return s, nil
}

// dialOwn opens a session of the client's own.
func (c *Client) dialOwn(ctx context.Context, role session.Role, commands ...session.Command) (*session.Session, error) {
	dial := c.dialer.Dial
	if c.budget.Take(session.Waiting) {
		defer c.budget.Give(session.Waiting)
		dial = c.dialer.DialProbed
	}
	s, err := dial(ctx, role, commands...)
	if err != nil {
		return nil, err
	}
	c.lockTable.Store(int64(s.Server.LockTable))
	if err := c.agree(s); err != nil {
		return nil, err
	}
	c.seen(s)
	return s, nil
}

// agree closes a session whose database has another engine than the client's, and returns why. On the way from one engine to the
// other a client that is there goes on with its own, as long as the server agrees: a connection that is lost costs no restart.
func (c *Client) agree(s *session.Session) error {
	recorded := s.Record.Engine
	if recorded == "" || recorded == c.engine || c.engine == string(engineBoth) || (recorded == string(engineBoth) && c.opened.Load()) {
		return nil
	}
	s.HangUp()
	wanted := fmt.Sprintf("the engine %q", c.engine)
	if c.pooled != nil {
		wanted += " (the only one on this ground: " + c.pooled.Error() + ")"
	}
	return &session.EngineError{Record: s.Record, Wanted: wanted}
}
