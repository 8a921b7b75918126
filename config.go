package pgbaton

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	defaultTTL      = 15 * time.Second
	minTTL          = time.Second
	maxTTL          = time.Hour
	defaultMaxConns = 4
	minMaxConns     = 2
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

	// MaxHold is how long a lock, a set of locks or a permit is held at the most. Then it is lost, as
	// "held too long" by [LossReasonOf]: the holder is told, and the lock goes to others. It is for the goroutine that hangs and lives, which no
	// sign of life can tell from one that works; it stops nobody who looks at neither Done nor a context. A leader's
	// term has no such bound. [LockOpts.MaxHold] is the same for one call.
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
