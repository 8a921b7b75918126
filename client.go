package pgbaton

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/campaign"
	"github.com/pgbaton/pgbaton/internal/deadlock"
	"github.com/pgbaton/pgbaton/internal/dsn"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/permit"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/sessionengine"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

const (
	defaultTTL      = 15 * time.Second
	minTTL          = time.Second
	maxTTL          = time.Hour
	defaultMaxConns = 4
	minMaxConns     = 2
	heldPerAnchor   = 1000 // locks of a session, from which on another one is opened
)

// Config adjusts a [Client]. The zero value, or nil, means all defaults.
type Config struct {
	// TTL is how long the server keeps the locks of a client that has fallen silent: its process frozen, its
	// machine gone, its network cut. The client itself stops trusting its locks after 9/10 of it. While idle
	// it shows three signs of life in each TTL. At least 1 s, at most 1 h.
	//
	// Defaults to 15 s.
	TTL time.Duration

	// MaxConns is the most connections that the client opens, however many locks it holds or waits for.
	// They are its own; the caller's pool is never used for locks. At least 2. Semaphores, leaders and Once need 3:
	// one is theirs from their first use on. A client that holds thousands of locks by then may have none left for them.
	//
	// Defaults to 4.
	MaxConns int

	// MaxHeld is the most keys that the client holds at the same time; further ones get
	// [ErrTooManyLocks]. They live in the server's lock table, which all its clients share.
	//
	// Defaults to an eighth of the lock table.
	MaxHeld int

	// MaxHold is how long a lock, a set of locks or a permit is held at the most. Then it is lost, with the reason
	// [LostTooLong]: the holder is told, and the lock goes to others. It is for the goroutine that hangs and lives, which no
	// sign of life can tell from one that works; it stops nobody who looks at neither Done nor a context. A leader's
	// term has no such bound. [DoOpts.MaxHold] is the same for one call.
	//
	// Defaults to zero: no bound.
	MaxHold time.Duration

	// Name says who this client is, to people who ask who holds a permit or leads.
	//
	// Defaults to the host's name and the process's number, host:pid.
	Name string

	// Logger gets what an operator may want to know: lost and reopened connections, protections that
	// the server refused, a repaired token sequence.
	//
	// Defaults to none.
	Logger *slog.Logger

	// SessionPooler says that the client reaches the server through a pooler in session mode, and
	// switches off the check that refuses poolers. Behind one in transaction mode locks exclude
	// nobody.
	//
	// Defaults to false.
	SessionPooler bool

	// Reduced accepts ground on which the client's own locks would exclude nobody: a pooler in transaction
	// mode, or an engine whose session locks do nothing. Acquire and its relatives then fail with the reason.
	// What lives in the caller's transactions works there, with or without a client: [AcquireTx], row locks,
	// versions and fences. Semaphores work too, see [Client.Semaphore].
	//
	// Defaults to false: New fails there.
	Reduced bool
}

// withDefaults fills a copy.
func (c *Config) withDefaults() Config {
	var filled Config
	if c != nil {
		filled = *c
	}
	filled.TTL = cmp.Or(filled.TTL, defaultTTL)
	filled.MaxConns = cmp.Or(filled.MaxConns, defaultMaxConns)
	if filled.Name == "" {
		host, _ := os.Hostname() // without one the number has to do
		filled.Name = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	if filled.Logger == nil {
		filled.Logger = slog.New(slog.DiscardHandler)
	}
	return filled
}

func (c *Config) validate() error {
	switch {
	case c.TTL < minTTL:
		return fmt.Errorf("pgbaton: Config.TTL is %v, the least is %v", c.TTL, minTTL)
	case c.TTL > maxTTL:
		return fmt.Errorf("pgbaton: Config.TTL is %v, the most is %v", c.TTL, maxTTL)
	case c.MaxConns < minMaxConns:
		return fmt.Errorf("pgbaton: Config.MaxConns is %d, the least is %d: one connection holds, one waits",
			c.MaxConns, minMaxConns)
	case c.MaxHold < 0:
		return fmt.Errorf("pgbaton: Config.MaxHold is %v: give a time, or zero for no bound", c.MaxHold)
	case !utf8.ValidString(c.Name) || strings.ContainsRune(c.Name, 0) || len(c.Name) > maxNameLength:
		return fmt.Errorf("pgbaton: Config.Name is %.32q…: at most %d bytes of UTF-8 without NUL", c.Name, maxNameLength)
	case c.MaxHeld < 0:
		return fmt.Errorf("pgbaton: Config.MaxHeld is %d, the least is 1", c.MaxHeld)
	}
	return nil
}

// Client acquires locks in one database. It is safe for concurrent use; one for each process and
// database is enough. Make it with [New] or [Open], end it with Close.
type Client struct {
	cfg    Config
	dialer session.Dialer
	budget *session.Budget
	home   *session.Home

	locks    *lockmgr.Manager
	sessions *sessionengine.Engine // of locks; nil if there is none

	journal *journal

	sidecar   *sidecar.Sidecar
	permits   *permit.Desk
	campaigns *campaign.Office

	deadlocks *deadlock.Detector

	reduced error // why there are no locks of the client's own; nil if there are

	mu          sync.Mutex
	protections []Protection // of the newest session for locks
	closed      bool
	done        chan struct{} // closed when Close has ended
}

// New makes a client for the database of a pool. It takes the pool's connection config, with its
// BeforeConnect and AfterConnect for every connection, and opens connections of its own; the
// pool itself is neither used nor altered, and may be closed before or after the client. The connections'
// application_name is "pgbaton/" and [Config.Name], cut to 63 bytes, unless the config has one. A tracer of the pool's
// sees nothing of them.
//
// All connections of a client are on one server. When the address comes to lead to another one, the client moves there
// as soon as a new connection finds out: first it loses everything that it holds on the old server ([LostMoved]).
//
// New connects, and on failure returns an error that says what to do and matches [ErrPooler],
// [ErrStandby], [ErrUnsupportedServer] or [ErrSchema] when the ground is wrong. ctx covers this call only.
func New(ctx context.Context, pool *pgxpool.Pool, cfg *Config) (*Client, error) {
	if pool == nil {
		return nil, errors.New("pgbaton: New: the pool is nil")
	}
	from := pool.Config()
	return newClient(ctx, session.Dialer{
		Config:        from.ConnConfig,
		BeforeConnect: from.BeforeConnect,
		AfterConnect:  from.AfterConnect,
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
	c := &Client{cfg: cfg, dialer: dialer, budget: session.NewBudget(cfg.MaxConns), home: home, journal: newJournal(cfg.Logger), done: make(chan struct{})}
	c.sessions = sessionengine.New(sessionengine.Config{
		TTL: cfg.TTL, PerAnchor: heldPerAnchor, MaxAnchors: cfg.MaxConns - 1, Budget: c.budget,
		Dial: c.dialHolding, Wait: c.dialWaiting, Report: c.report,
	})
	var err error
	c.locks, err = lockmgr.New(ctx, lockmgr.Config{Engine: c.sessions, MaxHeld: cfg.MaxHeld})
	if err != nil {
		if cfg.Reduced && (errors.Is(err, ErrPooler) || errors.Is(err, ErrUnsupportedServer)) {
			reduced := &Client{cfg: cfg, dialer: dialer, budget: c.budget, home: home, journal: c.journal, reduced: err, done: c.done}
			reduced.keepRows()
			return reduced, nil
		}
		c.journal.close()
		return nil, wrap(err, "")
	}
	c.keepRows()
	if room := c.sessions.Room(); cfg.MaxHeld > room {
		return nil, also(fmt.Errorf("pgbaton: Config.MaxHeld is %d, but the server's lock table has room for about %d "+
			"locks that this client may take: %w: raise max_locks_per_transaction, or lower MaxHeld",
			cfg.MaxHeld, room, ErrTooManyLocks), c.Close(ctx))
	}
	return c, nil
}

// keepRows makes what works with rows. It opens nothing yet.
func (c *Client) keepRows() {
	c.sidecar = sidecar.New(sidecar.Config{
		TTL: c.cfg.TTL, Name: c.cfg.Name, Pooled: c.reduced != nil, Report: c.report,
		Dial: c.dialSidecar, Hung: func() { c.budget.Give(session.Sidecar) },
	})
	var board deadlock.Board
	if c.cfg.MaxConns > minMaxConns { // else there is no connection for it
		board = deadlock.Table{Session: c.sidecar}
	}
	c.deadlocks = deadlock.New(board, c.home.Identity, c.report)
	permits := permit.Config{TTL: c.cfg.TTL, Ledger: c.sidecar, Pooled: c.reduced != nil, Report: c.report}
	campaigns := campaign.Config{Ledger: c.sidecar, Name: c.cfg.Name, Report: c.report}
	if c.reduced == nil {
		permits.Queue = func(gate advisory.Key) permit.Stand { return c.sessions.AtGate(gate) }
		campaigns.Desk = c.locks
	}
	c.permits, c.campaigns = permit.New(permits), campaign.New(campaigns)
	c.sidecar.KeepWhile(c.campaigns.Busy)
	c.sidecar.KeepWhile(c.deadlocks.Busy)
}

// dialSidecar opens the session for rows.
func (c *Client) dialSidecar(ctx context.Context, commands ...session.Command) (*session.Session, error) {
	if !c.budget.Take(session.Sidecar) {
		if c.sessions != nil && c.budget.Crowded() {
			c.sessions.MakeRoom()
		}
		if c.budget.Lasting() {
			return nil, fmt.Errorf("%w (%d): semaphores, leaders and Once need one; raise it, or use them before many locks are held",
				sidecar.ErrNoRoom, c.cfg.MaxConns)
		}
		return nil, sidecar.ErrBusy
	}
	var s *session.Session
	var err error
	if c.reduced != nil {
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

// dialHolding opens a session that will hold locks, and tries it out when a second connection is to be had for it: always
// for the first, nearly always later.
func (c *Client) dialHolding(ctx context.Context) (*session.Session, error) {
	dial := c.dialer.Dial
	if c.budget.Take(session.Waiting) {
		defer c.budget.Give(session.Waiting)
		dial = c.dialer.DialProbed
	}
	s, err := dial(ctx, session.Holding)
	if err == nil {
		c.seen(s)
	}
	return s, err
}

// seen notes the protections of a new session for locks, and tells the log what is odd about its server.
func (c *Client) seen(s *session.Session) {
	c.mu.Lock()
	c.protections = nil
	for _, p := range s.Protections {
		c.protections = append(c.protections, Protection(p))
	}
	c.mu.Unlock()
	if s.Repaired {
		c.journal.tell(slog.LevelWarn,
			"the token sequence was in doubt (crash, restart, failover or restore) and was moved on", nil)
	}
	if s.Server.DirectDraws {
		c.journal.tell(slog.LevelWarn, "other roles than the owner of the schema may draw from the sequence pgbaton.token past "+
			"the clock, as clients of earlier versions do: when none is left, SELECT pgbaton.apply_grants()", nil)
	}
	for _, p := range s.Protections {
		if p.Refused != "" {
			c.journal.tell(slog.LevelWarn, "the server refuses to set "+p.Setting+"; a lock may outlive its holder longer",
				errors.New(p.Refused))
		}
	}
}

// Protection is a setting by which the server frees the locks of a client that has fallen silent.
type Protection struct {
	Setting string // such as idle_session_timeout
	Value   string // what the client asks for
	Refused string // why the server does not set it; "" if it does
}

// Protections lists the protections of the connection that was opened last. Some hosts refuse some of
// them: locks exclude as well there, but without idle_session_timeout those of a frozen process are not
// freed, and without the others those behind a dead network later.
func (c *Client) Protections() []Protection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.protections)
}

// dialWaiting opens a session that will wait.
func (c *Client) dialWaiting(ctx context.Context) (*session.Session, error) {
	return c.dialer.Dial(ctx, session.Waiting)
}

// endTerms asks the client's leaders to resign. Half of the time that Close has is theirs to return in.
func (c *Client) endTerms(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TTL/2)
	defer cancel()
	c.campaigns.Close(ctx)
}

// endPermits frees the client's permits. It may take a quarter of the time that Close has: the locks come next.
func (c *Client) endPermits(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TTL/4)
	defer cancel()
	c.permits.Close(ctx)
}

// Close ends the client: waiters get [ErrClosed], locks that are still held are released and their holders
// told, and all connections and goroutines are gone when it returns. It waits for the server's word on
// the releases until ctx ends, and at most TTL; without it the server frees the locks when it notices
// that the connections are closed, and the error says so. Leaders are asked to resign first, and may take half
// of that time for it. It is safe to call twice; the second call waits for the first, until its own ctx ends, and
// returns nil.
func (c *Client) Close(ctx context.Context) error {
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
	defer c.journal.close()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TTL)
	defer cancel()
	c.endTerms(ctx)
	c.endPermits(ctx)
	var err error
	if c.reduced == nil {
		err = c.locks.Close(ctx)
	}
	c.deadlocks.Close(ctx)
	err = also(err, c.sidecar.Close(ctx))
	c.permits.Wait()
	if err != nil {
		return wrap(err, "")
	}
	return nil
}
