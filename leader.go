package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/election"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// leaderPrefix begins the names of the leaders' locks: the leader of "scheduler" holds Name("pgbaton/leader/scheduler").
const leaderPrefix = "pgbaton/leader/"

// Holder is a client that holds something by the database's word: a leader, or a claim of permits. Within its process,
// permits of a claim may be handed from goroutine to goroutine.
type Holder struct {
	Client    string        // its [Config.Name]
	Token     Token         // the leader's term; of a claim, and permits handed over in the process have slightly greater ones
	Since     time.Time     // by the database's clock; of leaders only
	Permits   int           // that the claim holds
	ExpiresIn time.Duration // of claims only: until then it is held unless it is renewed
}

// Lead runs fn in one process of all that call Lead with the same name: it is a candidate until it is elected, runs fn for
// that term, and is a candidate again, until ctx ends. Then it returns ctx's error and cause. When fn returns an error
// while its context has not ended, Lead resigns and returns that error. When fn returns nil, Lead resigns and is a
// candidate again. [Client.Close] ends Lead with [ErrClosed], and a database that has another engine than the client ends a candidate's
// wait with [ErrEngine].
//
// fn gets the leader's lock, whose token is the term: each is greater than all before. fn's context ends with ctx,
// and before that with a cause that matches [ErrLost] when the lock is lost, or [ErrResigned] when somebody asked the
// leader to resign; fn should then return soon, for the next leader may run already in the first case and waits
// in the second. Until fn has returned, this client is no candidate for the name.
//
// A leader is a holder of a lock, see [Lock.Done]: a process that was paused may believe for
// a moment that it leads. Where that matters, use [Lock.Assert], or the term with [Fence]. To release the lock is to
// resign.
//
// After a resignation, also by an error, the client holds back from the name for 2 s, so that another one leads if there
// is one. When a leader resigns, others have the term within milliseconds, when its process dies within a second and a
// half, and when it is paused within [Config.TTL] and a second. When all have resigned within 2 s, nobody leads until
// the first of them may again. A name is 1 to 497 bytes of UTF-8 without NUL.
//
// While it does not lead, Lead returns within 50 ms of the end of ctx. While it leads, it returns when fn has returned and the
// lock is released, which on a dead network takes up to [Config.TTL]: only then is it known whether the term was
// held until its end.
//
// On a client that has [Config.MaxConns] below 3 Lead fails, as do the other calls about leaders.
//
// # How it works
//
// The leader holds the exclusive lock of the key Name("pgbaton/leader/" + name). All candidates of a client are tried
// together about once a second, however many there are, and at once when a leader that resigns notifies them. A row in
// the table pgbaton.leader names the leader, for [Client.Leader] and [Client.RequestResign]; the row decides nothing. The client looks at the rows of its own terms at least every 5 s.
func (c *Client) Lead(ctx context.Context, name string, fn func(ctx context.Context, lock *Lock) error) error {
	key, err := c.leaderKey(name)
	if err != nil {
		return wrap(err, "term of %q", name)
	}
	run, err := c.elections.Join(name, c.named(key))
	if err != nil {
		return wrap(err, "term of %q", name)
	}
	defer run.Leave()
	for {
		term, err := run.Elect(ctx)
		if err != nil {
			return wrap(err, "term of %q", name)
		}
		lock := &Lock{client: c, key: key, hold: term.Hold, parent: ctx}
		if over, err := c.lead(ctx, term, lock, fn); over {
			return err
		}
	}
}

// lead runs fn for a term, and reports whether that was the last one.
func (c *Client) lead(
	outer context.Context, term *election.Term, lock *Lock, fn func(context.Context, *Lock) error,
) (over bool, err error) {
	ctx, cancel := context.WithCancelCause(lock.holding())
	defer cancel(nil)
	term.Attach(cancel)
	var cause error
	defer func() { // also when fn panics
		lost := term.End(outer)
		switch {
		case over:
			err = also(err, lost)
		case lost != nil && !errors.Is(cause, ErrLost): // else the func was told
			c.journal.Report("a leader's term was lost", lost)
		}
	}()
	err = fn(ctx, lock)
	cause = context.Cause(ctx)
	switch {
	case outer.Err() != nil:
		ended := wrap(lockerr.Ended(outer, nil), "term of %q", term.Name())
		if saysOnly(err, outer.Err(), context.Cause(outer)) {
			return true, ended
		}
		return true, also(ended, err)
	case cause == nil && err != nil:
		return true, err
	case !saysOnly(err, context.Canceled, cause):
		c.journal.Report("a leader's func failed after its term", err)
	}
	return false, nil
}

// saysOnly reports whether an error is nil or made of nothing but others, with words around them: so is that of a func
// whose context has ended. An error that is joined with them is something else.
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

// Leader returns the leader of a name in the client's service, or [ErrNotFound] if nobody leads. A leader that was
// elected a moment ago may not have told its name yet, and is then nobody. One whose process has died, or is held to be
// dead after [Config.TTL], is nobody too.
func (c *Client) Leader(ctx context.Context, name string) (Holder, error) {
	if _, err := c.leaderKey(name); err != nil {
		return Holder{}, wrap(err, "leader of %q", name)
	}
	info, err := c.elections.Leader(ctx, name)
	if err != nil {
		return Holder{}, wrap(pgerr.Schema(translate(err)), "leader of %q", name)
	}
	return Holder{Client: info.Holder, Since: info.Since, Token: Token(info.Term)}, nil
}

// RequestResign asks the leader of a name to resign, in whichever process it is, and does not wait for it. The leader
// hears of it at once, or, if the notification is lost, within 5 s. [ErrNotFound] says that nobody leads. If ctx ends
// during the call, the leader may have been asked.
func (c *Client) RequestResign(ctx context.Context, name string) error {
	if _, err := c.leaderKey(name); err != nil {
		return wrap(err, "request that the leader of %q resign", name)
	}
	if err := c.elections.RequestResign(ctx, name); err != nil {
		return wrap(pgerr.Schema(translate(err)), "request that the leader of %q resign", name)
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

// sideSession returns why the client has no sidecar, nil if it has one.
func (c *Client) sideSession() error {
	if err := c.made(); err != nil {
		return err
	}
	return c.thirdConnection()
}

// thirdConnection returns why the client has no connection for rows besides the ones that hold locks and wait, nil if it has one.
func (c *Client) thirdConnection() error {
	if err := c.made(); err != nil {
		return err
	}
	if c.cfg.MaxConns <= minMaxConns {
		return fmt.Errorf("semaphores, leaders and Once need a third connection, and Config.MaxConns is %d: raise it",
			c.cfg.MaxConns)
	}
	return nil
}
