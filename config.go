package pgbaton

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

const (
	defaultTTL      = 15 * time.Second
	minTTL          = time.Second
	maxTTL          = time.Hour
	defaultMaxConns = 4
	minMaxConns     = 2
)

// Engine is how the database excludes processes; see [Config.Engine].
type Engine string

const (
	// EngineAuto follows the record. Where nothing is recorded it is EngineSession if the ground allows, else EngineLease.
	EngineAuto Engine = ""
	// EngineSession holds locks as advisory locks of the client's own sessions: no write, free in milliseconds when the process dies,
	// handed over by the server. It needs a direct connection, or a pooler in session mode.
	EngineSession Engine = "session"
	// EngineLease holds locks as rows that expire after [Config.TTL] unless they are renewed: two small updates a lock. It works
	// behind a pooler in transaction mode as well, with a TTL of 2 s or more.
	EngineLease Engine = "lease"
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
	// "held too long" by [LossReasonOf]: the holder is told, and the lock goes to others. It is for a goroutine that hangs while
	// its process lives: no sign of life distinguishes it from one that works. It does not stop a goroutine that looks at neither
	// Done nor a context. A leader's
	// term has no such bound. [LockOpts.MaxHold] is the same for one call.
	//
	// Defaults to zero: no bound.
	MaxHold time.Duration

	// Name is what this client is called, as people see it who look up the holders of permits or a leader.
	//
	// Defaults to the host's name and the process's number, host:pid.
	Name string

	// Private keeps the names of keys and semaphores that the client waits for, and of the keys that it holds, out of the database: they are
	// published as numbers. Names of semaphores, leaders and runs are those of their rows nevertheless. See [Client.Locks].
	//
	// Defaults to false.
	Private bool

	// Logger gets what an operator may want to know: lost and reopened connections, protections that
	// the server refused, a repaired token sequence.
	//
	// Defaults to none.
	Logger *slog.Logger

	// SessionPooler reports that the client reaches the server through a pooler in session mode, and
	// switches off the check that refuses poolers. Behind one in transaction mode locks exclude
	// nobody.
	//
	// Defaults to false.
	SessionPooler bool

	// Engine is how the database excludes processes: by advisory locks of sessions, or by leases, which are rows and need no
	// session. All clients of a database have the same, which the first lock records; a client whose engine is another one
	// fails with [ErrEngine].
	//
	// Defaults to [EngineAuto].
	Engine Engine
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
	case c.Engine != EngineAuto && c.Engine != EngineSession && c.Engine != EngineLease:
		return fmt.Errorf("pgbaton: Config.Engine is %q: there are %q, %q and, for EngineAuto, %q",
			c.Engine, EngineSession, EngineLease, EngineAuto)
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

// LockOpts are the settings of calls that take something, for which nil means the defaults. Each call has a use for some
// of them, and refuses the others:
//
//	              | Client.  | Client.  | Client.  | Client.    | Semaphore. | AcquireTx | Fence
//	              | DoWith   | DoAll    | DoTx,    | OnceWith   | Do         |           |
//	              |          |          | DoSQLTx  |            |            |           |
//	Wait          | yes      | yes      | yes      |            | yes        | yes       |
//	Shared        | yes      |          | yes      |            |            | yes       | yes
//	MaxHold       | yes      | yes      | yes      | yes        | yes        |           |
//	Fence, Tx     |          |          | yes      |            |            |           |
//	StaleSnapshot |          |          |          |            |            | yes       |
//	RetryFailed   |          |          |          | yes        |            |           |
//	Force         |          |          |          | yes        |            |           |
type LockOpts struct {
	// Wait bounds the wait for the lock, and nothing else: what runs under the lock runs as long as its context lets it.
	// NoWait does not wait for other holders, as [Client.TryAcquire]. An error by Wait matches [ErrNotAcquired].
	//
	// Defaults to no bound but that of the context.
	Wait time.Duration

	// Shared takes the lock in the mode of [Client.AcquireShared]. For [Fence] the token is that of a shared lock.
	//
	// Defaults to false: exclusively.
	Shared bool

	// MaxHold is how long the lock is held at the most. Then it is lost, as "held too long" by [LossReasonOf]: the func's
	// context ends, the lock goes to others, and the call returns [ErrLost] when the func has returned. The lock does not
	// stop a func that heeds no context; Fence keeps such a func from committing.
	//
	// Defaults to [Config.MaxHold].
	MaxHold time.Duration

	// Fence begins each transaction with [Lock.Assert].
	//
	// Defaults to false.
	Fence bool

	// Tx is about the transaction.
	//
	// Defaults to those of [InTx].
	Tx TxOpts

	// StaleSnapshot lets a transaction above READ COMMITTED have the lock, though it may go on reading what was there
	// before the grant: for callers whose reads do not depend on the lock.
	//
	// Defaults to false: such a transaction is refused.
	StaleSnapshot bool

	// RetryFailed lets a run begin in the window of a run that has failed: its func returned an error or panicked, its lock
	// was lost, or its end is not recorded, because its process died or the server was away then.
	//
	// Defaults to false: a run that failed was the window's run.
	RetryFailed bool

	// Force runs the func whenever the last run was, if nobody runs it now.
	//
	// Defaults to false.
	Force bool
}

// use is a setting that a call has a use for.
type use uint8

const (
	usesWait use = 1 << iota
	usesShared
	usesMaxHold
	usesTx
	usesSnapshot
	usesRun
)

// checked returns a filled copy, or what is wrong with the settings for a call of a client.
func (o *LockOpts) checked(c *Client, call string, uses use) (LockOpts, error) {
	var opts LockOpts
	if err := c.made(); err != nil {
		return opts, err
	}
	if o != nil {
		opts = *o
		if err := opts.check(call, uses); err != nil {
			return opts, err
		}
	}
	if opts.MaxHold == 0 {
		opts.MaxHold = c.cfg.MaxHold
	}
	return opts, nil
}

// check returns what is wrong with the settings for a call.
func (o *LockOpts) check(call string, uses use) error {
	switch {
	case o.Wait < 0 && o.Wait != NoWait:
		return fmt.Errorf("LockOpts.Wait is %v: give a time, NoWait, or zero for no bound", o.Wait)
	case o.MaxHold < 0:
		return fmt.Errorf("LockOpts.MaxHold is %v: give a time, or zero for that of the Config", o.MaxHold)
	}
	for _, setting := range []struct {
		name string
		set  bool
		use  use
	}{
		{"Wait", o.Wait != 0, usesWait},
		{"Shared", o.Shared, usesShared},
		{"MaxHold", o.MaxHold != 0, usesMaxHold},
		{"Fence", o.Fence, usesTx},
		{"Tx", o.Tx != TxOpts{}, usesTx},
		{"StaleSnapshot", o.StaleSnapshot, usesSnapshot},
		{"RetryFailed", o.RetryFailed, usesRun},
		{"Force", o.Force, usesRun},
	} {
		if setting.set && uses&setting.use == 0 {
			return fmt.Errorf("LockOpts.%s is set, and %s has no use for it", setting.name, call)
		}
	}
	return nil
}

// only returns the settings of a call that takes them as its last arguments.
func only(all []*LockOpts, call string, uses use) (LockOpts, error) {
	switch {
	case len(all) > 1:
		return LockOpts{}, fmt.Errorf("%d LockOpts are given, the most is one", len(all))
	case len(all) == 0 || all[0] == nil:
		return LockOpts{}, nil
	}
	return *all[0], all[0].check(call, uses)
}

// waiting is ctx for the wait alone.
func (o *LockOpts) waiting(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.Wait <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, o.Wait, o.waited())
}

// waited is the error of a wait that Wait has ended.
func (o *LockOpts) waited() error { return fmt.Errorf("the wait of %v is over", o.Wait) }

// limit has a grant end as lost after a time.
func limit(grant interface {
	OnEnd(f func(error))
	Forfeit(cause error)
}, most time.Duration,
) {
	timer := time.AfterFunc(most, func() {
		grant.Forfeit(&lockerr.LossError{Reason: lockerr.HeldTooLong, Cause: fmt.Errorf("MaxHold of %v has passed", most)})
	})
	grant.OnEnd(func(error) { timer.Stop() })
}
