package pgbaton

import (
	"context"
	"fmt"
	"sync"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
)

// Lock is a key that is held. It is made by [Client.Acquire] and its relatives, and ended by Release, by
// [Client.Close], or by loss. It is safe for concurrent use. Locks are not re-entrant: a second Acquire of a
// key waits for the first, also in the same goroutine. A nil or zero Lock behaves as one that was released.
//
// # How it works
//
// The lock is a PostgreSQL session-level advisory lock on a connection of the client that holds many, or a lease: a row that the
// client renews; see [Config.Engine]. When
// the process dies the server frees it within milliseconds, when the process or the network
// stalls, or behind a pooler, after [Config.TTL]. Within the process a released key is handed to the next goroutine in
// line without asking the server, for a while.
type Lock struct {
	client *Client
	key    Key
	hold   *lockmgr.Hold
	parent context.Context //nolint:containedctx // the values of the lock's own context

	context grantContext
}

// Acquire waits until it holds the key exclusively, or ctx ends. ctx covers this call only; the lock
// outlives it.
//
// On success the key is really held, with a token greater than that of every earlier grant. On failure
// nothing is held or waited for, and the error matches [ErrNotAcquired] and the context's error when the
// context ended, [ErrTooManyLocks] or [ErrClosed]. It returns within 50 ms of the context's end, whatever
// the network does. While the server cannot be reached, it goes on trying until the context ends.
//
// Waiters of one process are served in the order of their arrival; between processes it is the order
// of the server's own queue, see the package comment.
func (c *Client) Acquire(ctx context.Context, key Key) (*Lock, error) {
	return c.limitLock(c.acquire(ctx, key, advisory.Exclusive, false))
}

// TryAcquire is [Client.Acquire] for a key that is free: it does not wait for other holders, and returns
// [ErrNotAcquired] when there is one, or a waiter. It takes one round trip at most, but the
// connection may have to be opened first.
func (c *Client) TryAcquire(ctx context.Context, key Key) (*Lock, error) {
	return c.limitLock(c.acquire(ctx, key, advisory.Exclusive, true))
}

// AcquireShared is [Client.Acquire] for a lock that any number may share and that excludes exclusive ones.
// Its token is greater than that of every earlier exclusive grant. A waiting exclusive lock goes before
// shared ones that come later.
func (c *Client) AcquireShared(ctx context.Context, key Key) (*Lock, error) {
	return c.limitLock(c.acquire(ctx, key, advisory.Shared, false))
}

// TryAcquireShared is [Client.AcquireShared] that does not wait for other holders, as [Client.TryAcquire].
func (c *Client) TryAcquireShared(ctx context.Context, key Key) (*Lock, error) {
	return c.limitLock(c.acquire(ctx, key, advisory.Shared, true))
}

func (c *Client) acquire(ctx context.Context, key Key, mode advisory.Mode, try bool) (*Lock, error) {
	if err := key.validate(); err != nil {
		return nil, wrap(err, "acquire lock")
	}
	if err := c.made(); err != nil {
		return nil, wrap(err, "acquire %s", key.what())
	}
	var hold *lockmgr.Hold
	var err error
	if try {
		hold, err = c.locks.Acquire(ctx, c.named(key), mode, true)
	} else {
		hold, err = c.wait(ctx, key, advisory.Single, mode)
	}
	if err != nil {
		return nil, wrap(err, "acquire %s", key.what())
	}
	return &Lock{client: c, key: key, hold: hold, parent: ctx}, nil
}

// errNoGrant is the error of a lock, set or permit that is nil or zero. Such a one behaves as one that is released.
var errNoGrant = fmt.Errorf("%w: it is nil or zero, and was never acquired", lockerr.NotHeld)

// never is the signal of a grant that was never acquired.
var never = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// noContext is the context of a grant that was never acquired.
func noContext() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errNoGrant)
	return ctx
}

// none reports whether the lock was never acquired.
func (l *Lock) none() bool { return l == nil || l.hold == nil }

// what names the lock in errors.
func (l *Lock) what() string {
	if l.none() {
		return "lock"
	}
	return l.key.what()
}

// Key is what is locked.
func (l *Lock) Key() Key {
	if l.none() {
		return Key{}
	}
	return l.key
}

// Token is the grant's fencing token; see [Token].
func (l *Lock) Token() Token {
	if l.none() {
		return 0
	}
	return Token(l.hold.Token())
}

// Done is closed when the lock is over: released, lost, or no longer to be trusted. On a silent network
// or after a pause of the process that is before the server can grant the key to anybody else, once the
// process runs. When the server ends the session it is a moment after; use the token to be safe from
// what happens in it.
func (l *Lock) Done() <-chan struct{} {
	if l.none() {
		return never
	}
	return l.hold.Done()
}

// Context is a context that ends when the lock is over, with [Lock.Err] as its cause. It has the
// values of the acquire's context, but not its end. Every call returns the same.
//
// An acquire with this context, or one derived from it, is known to wait while the lock is held: if that is part of a
// deadlock, it ends with [ErrDeadlock].
func (l *Lock) Context() context.Context {
	if l.none() {
		return noContext()
	}
	return l.context.of(l.holding(), l.hold)
}

// holding is the context of the acquire for what runs while the lock is held.
func (l *Lock) holding() context.Context {
	return l.client.holding(l.parent, []Key{l.key}, []*lockmgr.Hold{l.hold})
}

// grantContext is the context of a grant, made when asked for.
type grantContext struct {
	once sync.Once
	ctx  context.Context //nolint:containedctx // made when asked for
}

func (c *grantContext) of(parent context.Context, grant interface{ OnEnd(f func(error)) }) context.Context {
	c.once.Do(func() {
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
		c.ctx = ctx
		grant.OnEnd(cancel)
	})
	return c.ctx
}

// Err is nil while the lock is held and can be trusted. Afterwards it matches [ErrNotHeld] if the lock
// was released, or [ErrLost] and says why: the connection was lost, the lease expired, an operator or the
// server ended the session. It asks no server.
func (l *Lock) Err() error {
	if err := l.trouble(); err != nil {
		return wrap(err, "%s", l.what())
	}
	return nil
}

// trouble is Err without the lock's name.
func (l *Lock) trouble() error {
	if l.none() {
		return errNoGrant
	}
	return l.hold.Err()
}

// Release ends the lock. Nil means that it was held without a break until this call, as far as the server,
// or for a hand-over within the process the client's trust in its connection, can say. An error that
// matches [ErrLost] means that it was not, or that it is not known; there is nothing left to release.
//
// It is safe to call twice, in defer, and after ctx has ended: a release is never cut short, and ctx is not
// used. It returns within TTL on a dead network. A second call returns what the first did.
func (l *Lock) Release(ctx context.Context) error {
	if l.none() {
		return wrap(errNoGrant, "release lock")
	}
	if err := l.hold.Release(); err != nil {
		return wrap(err, "release %s", l.key.what())
	}
	return nil
}

// Do runs fn while it holds the key exclusively. The context given to fn ends with ctx, and is cancelled
// with a cause that matches [ErrLost] when the lock is lost: fn should then stop. The lock is released
// when fn returns, or panics.
//
// The error is that of the acquire, in which case fn did not run; or fn's, joined with [ErrLost]
// when the lock was lost before fn had returned, also if fn itself saw nothing of it.
//
// The wait returns within 50 ms of the end of ctx, as in [Client.Acquire]. The release that follows fn does not heed ctx,
// as [Lock.Release] says: on a dead network it takes up to [Config.TTL], and only then it is known whether the
// lock was held until the end.
//
// A transaction that fn begins and commits by itself may still be under way when fn returns, if its commit ended
// with an unknown outcome: [Client.DoTx] makes the next holder wait for it.
func (c *Client) Do(ctx context.Context, key Key, fn func(ctx context.Context, lock *Lock) error) error {
	return c.DoWith(ctx, key, nil, fn)
}

// DoWith is [Client.Do] with settings.
func (c *Client) DoWith(
	ctx context.Context, key Key, opts *LockOpts, fn func(ctx context.Context, lock *Lock) error,
) error {
	o, err := opts.checked(c, "DoWith", usesWait|usesShared|usesMaxHold)
	if err != nil {
		return wrap(err, "do with %s", key.what())
	}
	lock, err := c.acquireFor(ctx, key, o)
	if err != nil {
		return err
	}
	return lock.do(ctx, fn)
}

// acquireFor takes the lock for a call that has settings.
func (c *Client) acquireFor(ctx context.Context, key Key, o LockOpts) (*Lock, error) {
	mode := advisory.Exclusive
	if o.Shared {
		mode = advisory.Shared
	}
	wait, cancel := o.waiting(ctx)
	defer cancel()
	lock, err := c.acquire(wait, key, mode, o.Wait == NoWait)
	if err != nil {
		return nil, err
	}
	lock.parent = ctx // which does not end with the wait
	if o.MaxHold > 0 {
		limit(lock.hold, o.MaxHold)
	}
	return lock, nil
}

// do runs fn while the lock is held, and releases it.
func (l *Lock) do(ctx context.Context, fn func(ctx context.Context, lock *Lock) error) (err error) {
	defer func() { err = also(err, l.Release(ctx)) }()
	held, cancel := context.WithCancelCause(l.holding())
	defer cancel(nil)
	l.hold.OnEnd(cancel)
	return fn(held, l)
}

// limitLock applies Config.MaxHold to a lock, if it was acquired.
func (c *Client) limitLock(lock *Lock, err error) (*Lock, error) {
	if err == nil && c.cfg.MaxHold > 0 {
		limit(lock.hold, c.cfg.MaxHold)
	}
	return lock, err
}
