package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/election"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// leaderPrefix begins the names of the leaders' locks: who leads "scheduler" holds Name("pgbaton/leader/scheduler").
const leaderPrefix = "pgbaton/leader/"

// LeaderInfo says who leads.
type LeaderInfo struct {
	Name   string
	Holder string    // the leader's [Config.Name]
	Since  time.Time // by the database's clock
	Term   Token
}

// Lead runs fn in one process of all that call Lead with the same name: it campaigns until it is elected, runs fn for
// that term, and campaigns again, until ctx ends. Then it returns ctx's error and cause. When fn returns an error
// while its context has not ended, Lead resigns and returns that error; when fn returns nil, that is a resignation,
// and the campaign goes on. [Client.Close] ends Lead with [ErrClosed].
//
// The term is the fencing token of the leader's lock: each is greater than those before. fn's context ends with ctx,
// and before that with a cause that matches [ErrLost] when the lock is lost, or [ErrResigned] when somebody asked the
// leader to resign; fn should then return soon, for the next leader may run already in the first case and waits
// in the second. Until it has returned, this client does not campaign for the name.
//
// What is true of a holder of a lock, see [Lock.Done], is true of a leader: a process that stood still may believe for
// a moment that it leads. Where that matters, use the term with [Fence], or [LeaderLock] with [AssertHeld].
// [LeaderLock] also gives fn a warning before the loss.
//
// After a resignation, also by an error, the client holds back from the name for 2 s, so that another one leads if there
// is one. When a leader resigns, others have the term within milliseconds, when its process dies within a second and a
// half, and when it stands still within [Config.TTL] and a second. When all have resigned within 2 s, nobody leads until
// the first of them may again. A name is 1 to 497 bytes of UTF-8 without NUL.
//
// While it does not lead, Lead returns within 50 ms of the end of ctx. While it leads, it returns when fn has returned and the
// lock is released, which on a dead network takes up to [Config.TTL]: only then is it known whether the term was
// held until its end.
//
// On a client that has [Config.MaxConns] below 3 or is reduced Lead fails, as do the other calls about leaders.
//
// # How it works
//
// The leader holds the exclusive lock of the key Name("pgbaton/leader/" + name). All campaigns of a client that do not
// lead are tried together about once a second, however many there are, and at once when a leader that resigns notifies
// them. A row in the table pgbaton.leader says who leads, for [Client.Leader] and for whoever asks the leader to
// resign; it decides nothing. The client looks at the rows of its own terms at least every 5 s.
func (c *Client) Lead(ctx context.Context, name string, fn func(ctx context.Context, term Token) error) error {
	key, err := c.leaderKey(name)
	if err != nil {
		return fmt.Errorf("pgbaton: lead: %w", err)
	}
	run, err := c.campaigns.Join(name, key.key)
	if err != nil {
		return fmt.Errorf("pgbaton: lead %q: %w", name, err)
	}
	defer run.Leave()
	for {
		term, err := run.Elect(ctx)
		if err != nil {
			return fmt.Errorf("pgbaton: lead %q: %w", name, err)
		}
		lock := &Lock{client: c, key: key, hold: term.Hold, parent: ctx}
		if over, err := c.serve(ctx, term, lock, fn); over {
			return err
		}
	}
}

// serve runs fn for a term, and says whether that was the last one.
func (c *Client) serve(
	outer context.Context, term *election.Term, lock *Lock, fn func(context.Context, Token) error,
) (over bool, err error) {
	ctx, cancel := context.WithCancelCause(context.WithValue(lock.holding(), leaderLockKey{}, lock))
	defer cancel(nil)
	term.Attach(cancel)
	var cause error
	defer func() { // also when fn panics
		lost := term.End(outer)
		switch {
		case over:
			err = also(err, lost)
		case lost != nil && !errors.Is(cause, ErrLost): // else those who work in it were told
			c.report("a leader's term was lost", lost)
		}
	}()
	err = fn(ctx, lock.Token())
	cause = context.Cause(ctx)
	switch {
	case outer.Err() != nil:
		ended := fmt.Errorf("pgbaton: lead %q: %w", term.Name(), endOf(outer))
		if saysOnly(err, outer.Err(), context.Cause(outer)) {
			return true, ended
		}
		return true, also(ended, err)
	case cause == nil && err != nil:
		return true, err
	case !saysOnly(err, context.Canceled, cause):
		c.report("a leader's func failed after its term", err)
	}
	return false, nil
}

// saysOnly says whether an error is nil or made of nothing but others, with words around them: what a func says whose
// context has ended. What is joined with them is something else.
func saysOnly(err error, others ...error) bool {
	switch wrapper := err.(type) { //nolint:errorlint // each layer in its turn
	case nil:
		return true
	case interface{ Unwrap() error }:
		if inner := wrapper.Unwrap(); inner != nil {
			return saysOnly(inner, others...)
		}
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(wrapper.Unwrap(), func(inner error) bool { return !saysOnly(inner, others...) })
	}
	return slices.ContainsFunc(others, func(other error) bool { return errors.Is(other, err) })
}

// endOf is a context's error with its cause.
func endOf(ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

type leaderLockKey struct{}

// LeaderLock is the lock behind the term for whose func ctx was made: for [AssertHeld], and for [Lock.Jeopardy], which
// warns before the term is lost. To release it is to resign. Nil if ctx does not come from [Client.Lead].
func LeaderLock(ctx context.Context) *Lock {
	lock, _ := ctx.Value(leaderLockKey{}).(*Lock)
	return lock
}

// Leader says who leads a name in the client's service, or [ErrNotFound] if nobody does. A leader that was elected a moment ago may not
// have told its name yet, and is then nobody. One whose process has died, or is held to be dead after
// [Config.TTL], is nobody too.
func (c *Client) Leader(ctx context.Context, name string) (LeaderInfo, error) {
	if _, err := c.leaderKey(name); err != nil {
		return LeaderInfo{}, fmt.Errorf("pgbaton: leader: %w", err)
	}
	info, err := c.campaigns.Leader(ctx, name)
	if err != nil {
		return LeaderInfo{}, fmt.Errorf("pgbaton: leader of %q: %w", name, pgerr.Schema(translate(err)))
	}
	return LeaderInfo{Name: name, Holder: info.Holder, Since: info.Since, Term: Token(info.Term)}, nil
}

// Resign ends this client's own term of a name: the context of the func in [Client.Lead] ends with [ErrResigned], and
// Resign waits until the func has returned and the lock is released, or ctx ends. The func itself resigns by
// returning nil; it must not wait for itself here.
//
// On failure the error matches [ErrNotHeld] if this client does not lead the name, [ErrLost] if the term was lost
// before its end, or ctx's error: then the term has been asked to end and has not yet.
func (c *Client) Resign(ctx context.Context, name string) error {
	if _, err := c.leaderKey(name); err != nil {
		return fmt.Errorf("pgbaton: resign: %w", err)
	}
	if err := c.campaigns.Resign(ctx, name); err != nil {
		return fmt.Errorf("pgbaton: resign %q: %w", name, err)
	}
	return nil
}

// RequestResign asks whoever leads a name to resign, in whichever process it is, and does not wait for it. The leader
// hears of it at once, or, if the notification is lost, within 5 s. [ErrNotFound] says that nobody leads. If ctx ends
// during the call, the leader may have been asked.
func (c *Client) RequestResign(ctx context.Context, name string) error {
	if _, err := c.leaderKey(name); err != nil {
		return fmt.Errorf("pgbaton: request to resign: %w", err)
	}
	if err := c.campaigns.RequestResign(ctx, name); err != nil {
		return fmt.Errorf("pgbaton: request that the leader of %q resign: %w", name, pgerr.Schema(translate(err)))
	}
	return nil
}

// leaderKey is the key of a leader's lock, if there can be one.
func (c *Client) leaderKey(name string) (Key, error) {
	if err := validateName("leader", name, maxNameLength-len(leaderPrefix)); err != nil {
		return Key{}, err
	}
	return Name(leaderPrefix + name), c.sideSession()
}

// sideSession says why the client has no connection for rows and notifications, if so.
func (c *Client) sideSession() error {
	if c.reduced != nil {
		return fmt.Errorf("the client is reduced to what transactions can do: %w", c.reduced)
	}
	return c.thirdConnection()
}

// thirdConnection says whether the client may have one for rows, besides those that hold locks and wait.
func (c *Client) thirdConnection() error {
	if c.cfg.MaxConns <= minMaxConns {
		return fmt.Errorf("semaphores, leaders and Once need a third connection, and Config.MaxConns is %d: raise it",
			c.cfg.MaxConns)
	}
	return nil
}
