package pgbaton

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/dsn"
	"github.com/pgbaton/pgbaton/internal/election"
	"github.com/pgbaton/pgbaton/internal/journal"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/registry"
	"github.com/pgbaton/pgbaton/internal/semaphore"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/sessionengine"
	"github.com/pgbaton/pgbaton/internal/sidecar"
	"github.com/pgbaton/pgbaton/internal/waitgraph"
)

// Client acquires locks in one database. It is safe for concurrent use; one for each process and
// database is enough. Make it with [New] or [Open], end it with Close.
type Client struct {
	cfg    Config
	dialer session.Dialer
	budget *session.Budget
	home   *session.Home

	locks    *lockmgr.Manager
	sessions *sessionengine.Engine // nil for a client of leases

	journal *journal.Journal

	sidecar    *sidecar.Sidecar
	semaphores *semaphore.Manager
	elections  *election.Manager

	waits      *waitgraph.Detector
	registry   *registry.Registry // nil if the client does not publish
	answerer   atomic.Pointer[registry.Answerer]
	gatherings sync.Map // the waits for several keys, each with the one that it waits for

	engine string      // "session", "lease", or "both" on the way from one to the other
	pooled error       // why the client has no sessions of its own; nil if it has
	opened atomic.Bool // the engine was found

	lockTable atomic.Int64 // how many locks fit into the server's

	mu     sync.Mutex
	ground *ground // that the newest session of the client found; nil before the first
	closed bool
	done   chan struct{} // closed when Close has ended
}

// New makes a client for the database of a *pgxpool.Pool, or of a *sql.DB of pgx's driver. It opens connections of its
// own; pool or database are not altered, and may be closed before or after the client. The connections'
// application_name is "pgbaton/" and [Config.Name], cut to 63 bytes, unless the config has one. A tracer of the pool's
// sees nothing of them.
//
// Of a pool it takes the connection config, with its BeforeConnect and AfterConnect for every connection, and no
// connection. From a *sql.DB it takes a connection for a moment to ask it how it was opened, and keeps none: the client
// opens its connections with the password and the address that this one had. Hooks that were given to stdlib.OpenDB are
// not to be had; where passwords rotate, give a pool. Connections of other drivers do not show how they were opened: use
// [Open] there, for lib/pq for example.
//
// All connections of a client are on one server. When the address comes to lead to another one, the client moves there
// as soon as a new connection finds out: first it loses everything that it holds on the old server; see [LossReasonOf].
//
// New connects, up to five times if the server ends the connection meanwhile, and on failure returns an error that names
// the remedy and matches [ErrPooler],
// [ErrStandby], [ErrUnsupportedServer] or [ErrSchema] when the ground is wrong. ctx covers this call only.
func New[DB *pgxpool.Pool | *sql.DB](ctx context.Context, db DB, cfg *Config) (*Client, error) {
	config, err := configOf(ctx, db)
	if err != nil {
		return nil, wrap(err, "New")
	}
	return newClient(ctx, session.Dialer{
		Config:        config.ConnConfig,
		BeforeConnect: config.BeforeConnect,
		AfterConnect:  config.AfterConnect,
	}, cfg)
}

// Open is [New] for a service without a pool: it takes a connection string or URL as pgx knows it. Parameters of a pool,
// such as pool_max_conns, may be in it and mean nothing here: [Config.MaxConns] bounds the connections. No error has the
// password.
func Open(ctx context.Context, connString string, cfg *Config) (*Client, error) {
	config, err := dsn.Parse(connString)
	if err != nil {
		return nil, fmt.Errorf("pgbaton: open: %w", err)
	}
	return newClient(ctx, session.Dialer{Config: config.ConnConfig}, cfg)
}

func newClient(ctx context.Context, dialer session.Dialer, config *Config) (*Client, error) {
	cfg := config.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	home := session.NewHome()
	dialer.TTL, dialer.SessionPooler, dialer.Name, dialer.Home = cfg.TTL, cfg.SessionPooler, cfg.Name, home
	c := &Client{cfg: cfg, dialer: dialer, budget: session.NewBudget(cfg.MaxConns), home: home, journal: journal.New(cfg.Logger), done: make(chan struct{})}
	if err := c.open(ctx); err != nil {
		c.journal.Close()
		return nil, wrap(err, "")
	}
	c.makeRowParts()
	if c.sessions == nil {
		return c, nil
	}
	if most := c.sessions.MostLocks(); cfg.MaxHeld > most {
		return nil, also(fmt.Errorf("pgbaton: Config.MaxHeld is %d, but the server's lock table takes about %d "+
			"locks that this client may take: %w: raise max_locks_per_transaction, or lower MaxHeld",
			cfg.MaxHeld, most, ErrTooManyLocks), c.Close(ctx))
	}
	return c, nil
}

// makeRowParts makes what works with rows. It opens nothing yet.
func (c *Client) makeRowParts() {
	c.sidecar = sidecar.New(sidecar.Config{
		TTL: c.cfg.TTL, Name: c.cfg.Name, Pooled: c.pooled != nil, Mute: c.dialer.Portable, Report: c.journal.Report,
		Dial: c.dialSidecar, Hung: func() { c.budget.Give(session.Sidecar) },
	})
	var board waitgraph.Board
	if c.cfg.MaxConns > minMaxConns && !c.dialer.Portable { // else there is no connection for it, or no table
		board = waitgraph.Table{Session: c.sidecar}
	}
	c.waits = waitgraph.New(board, c.identity, c.journal.Report)
	permits := semaphore.Config{TTL: c.cfg.TTL, Sidecar: c.sidecar, Pooled: c.pooled != nil, Report: c.journal.Report}
	elections := election.Config{Sidecar: c.sidecar, Name: c.cfg.Name, Report: c.journal.Report, Locks: c.locks}
	if c.sessions != nil {
		permits.Queue = func(gate advisory.Key) semaphore.Place { return c.sessions.AtGate(gate) }
	}
	c.semaphores, c.elections = semaphore.New(permits), election.New(elections)
	c.sidecar.StayOpenWhile(c.elections.Busy)
	c.sidecar.StayOpenWhile(c.waits.Busy)
	if c.registry = c.newRegistry(); c.registry != nil {
		c.answerer.Store(c.newAnswerer())
		c.sidecar.Subscribe(registry.FreePrefix, c.notified)
	}
}

// identity is that of the server, and of the database, on which the client's locks are: equal for clients whose locks exclude one
// another. Behind a pooler it is the address, since sessions may be those of any server.
func (c *Client) identity() string {
	if c.pooled == nil {
		return c.home.Identity()
	}
	return fmt.Sprintf("%s:%d/%s", c.dialer.Config.Host, c.dialer.Config.Port, c.dialer.Config.Database)
}

// dialSidecar opens the session for rows.
func (c *Client) dialSidecar(ctx context.Context, commands ...session.Command) (*session.Session, error) {
	if !c.budget.Take(session.Sidecar) {
		if c.sessions != nil && c.budget.Crowded() {
			c.sessions.GiveWay()
		}
		if c.budget.Lasting() {
			return nil, fmt.Errorf("%w (%d): semaphores, leaders and Once need one; raise it, or use them before many locks are held",
				sidecar.ErrNoConnection, c.cfg.MaxConns)
		}
		return nil, sidecar.ErrBusy
	}
	var s *session.Session
	var err error
	if c.pooled != nil {
		s, err = c.dialer.DialPooled(ctx, commands...)
	} else {
		s, err = c.dialer.Dial(ctx, session.Sidecar, commands...)
	}
	if err != nil {
		c.budget.Give(session.Sidecar)
		return nil, err
	}
	return s, nil
}

// seen keeps what a new session for locks found, and logs what is odd about its server.
func (c *Client) seen(s *session.Session) {
	c.note(s)
	if s.Repaired {
		c.journal.Log(slog.LevelWarn,
			"the token sequence was in doubt (crash, restart, failover or restore) and was moved on", nil)
	}
	if s.Server.DirectDraws {
		c.journal.Log(slog.LevelWarn, "other roles than the owner of the schema may draw from the sequence pgbaton.token past "+
			"the clock, as clients of earlier versions do: when none is left, SELECT pgbaton.apply_grants()", nil)
	}
	for _, p := range s.Protections {
		if p.Refused != "" {
			c.journal.Log(slog.LevelWarn, "the server refuses to set "+p.Setting+"; a lock may outlive its holder longer",
				errors.New(p.Refused))
		}
	}
}

// endTerms asks the client's leaders to resign. Half of the time that Close has is theirs to return in.
func (c *Client) endTerms(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TTL/2)
	defer cancel()
	c.elections.Close(ctx)
}

// endPermits frees the client's permits. It may take a quarter of the time that Close has: the locks come next.
func (c *Client) endPermits(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TTL/4)
	defer cancel()
	c.semaphores.Close(ctx)
}

// Close ends the client: waiters get [ErrClosed], locks that are still held are released, their holders
// are told, and all connections and goroutines are gone when it returns. It waits for the server's word on
// the releases until ctx ends, and at most TTL; without it the server frees the locks when it notices
// that the connections are closed, and the error says so. Leaders are asked to resign first, and may take half
// of that time for it. It is safe to call twice; the second call waits for the first, until its own ctx ends, and
// returns nil.
func (c *Client) Close(ctx context.Context) error {
	if err := c.made(); err != nil {
		return wrap(err, "close")
	}
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if !first {
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("pgbaton: wait for the client to be closed: %w", ctx.Err())
		}
	}
	defer close(c.done)
	defer c.journal.Close()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TTL)
	defer cancel()
	c.endTerms(ctx)
	c.endPermits(ctx)
	if c.registry != nil {
		c.registry.Stop(ctx)
	}
	err := c.locks.Close(ctx)
	c.waits.Close(ctx)
	if c.registry != nil {
		if a := c.answerer.Load(); a != nil {
			a.Close()
		}
		c.registry.Close(ctx, err == nil)
	}
	err = also(err, c.sidecar.Close(ctx))
	c.semaphores.Wait()
	if err != nil {
		return wrap(err, "")
	}
	return nil
}

// made returns an error for a client that is nil or zero.
func (c *Client) made() error {
	if c == nil || c.done == nil {
		return fmt.Errorf("%w: it is nil or zero: New and Open make one", lockerr.Closed)
	}
	return nil
}

// configOf returns how the connections of a pool or a database are opened.
func configOf(ctx context.Context, db any) (*pgxpool.Config, error) {
	switch db := db.(type) {
	case *pgxpool.Pool:
		if db != nil {
			return db.Config(), nil
		}
	case *sql.DB:
		if db != nil {
			config, err := connConfig(ctx, db)
			return &pgxpool.Config{ConnConfig: config}, err
		}
	}
	return nil, errors.New("the pool or the database is nil")
}

// connConfig returns how the connections of a database are opened.
func connConfig(ctx context.Context, db *sql.DB) (*pgx.ConnConfig, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask a connection how it was opened: %w", err)
	}
	defer conn.Close()
	var config *pgx.ConnConfig
	err = conn.Raw(func(driver any) error {
		known, ok := driver.(interface{ Conn() *pgx.Conn })
		if !ok {
			return fmt.Errorf("connections of the driver %T do not say how they were opened: use Open or Migrate with a "+
				"connection string, or pgx's driver (github.com/jackc/pgx/v5/stdlib)", driver)
		}
		config = known.Conn().Config()
		return nil
	})
	return config, err
}
