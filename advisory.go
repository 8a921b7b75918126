package pgbaton

import (
	"context"
	"fmt"
	"sync"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
)

// Lock is a key that is held. It is made by [Client.Acquire] and its relatives, and ended by Release, by
// [Client.Close], or by loss. It is safe for concurrent use. Locks are not re-entrant: a second Acquire of a
// key waits for the first, also in the same goroutine.
//
// # How it works
//
// The lock is a PostgreSQL session-level advisory lock on a connection of the client that holds many. When
// the process dies the server frees it within milliseconds, when the process or the network stands
// still, after [Config.TTL]. Within the process a released key is handed to the next goroutine in
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
		return nil, fmt.Errorf("pgbaton: acquire lock: %w", err)
	}
	if c.reduced != nil {
		return nil, fmt.Errorf("pgbaton: acquire lock %v: the client is reduced to what transactions can do: %w", key, c.reduced)
	}
	var hold *lockmgr.Hold
	var err error
	if try {
		hold, err = c.locks.Acquire(ctx, key.key, mode, true)
	} else {
		hold, err = c.wait(ctx, key, mode)
	}
	if err != nil {
		return nil, fmt.Errorf("pgbaton: acquire lock %v: %w", key, err)
	}
	return &Lock{client: c, key: key, hold: hold, parent: ctx}, nil
}

// Key is what is locked.
func (l *Lock) Key() Key { return l.key }

// Token is the grant's fencing token; see [Token].
func (l *Lock) Token() Token { return Token(l.hold.Token()) }

// Done is closed when the lock is over: released, lost, or no longer to be trusted. On a silent network
// or after a pause of the process that is before the server can grant the key to anybody else, once the
// process runs. When the server ends the session it is a moment after; use the token to be safe from
// what happens in it.
func (l *Lock) Done() <-chan struct{} { return l.hold.Done() }

// Jeopardy is closed while more than half of the time for which the client trusts the lock has passed without
// a word from the server: a moment to pause before the lock is lost, which may be the next thing, or may
// not. When the server answers after all, a later call returns a channel that is open. It is closed too when
// the lock's connection is lost.
func (l *Lock) Jeopardy() <-chan struct{} { return l.hold.Jeopardy() }

// Context is a context that ends when the lock is over, with [Lock.Err] as its cause. It has the
// values of the acquire's context, but not its end. Every call returns the same.
//
// An acquire with this context, or one derived from it, is known to wait while the lock is held: if that is part of a
// deadlock, it ends with [ErrDeadlock].
func (l *Lock) Context() context.Context { return l.context.of(l.holding(), l.hold) }

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
	if err := l.hold.Err(); err != nil {
		return fmt.Errorf("pgbaton: lock %v: %w", l.key, err)
	}
	return nil
}

// Downgrade makes an exclusive lock shared, without a gap: nobody is granted the key exclusively in between, also
// none who waits for it. The token stays. Afterwards shared locks may join, of this process and of others, in
// their turn: those that wait behind an exclusive one wait for it. A shared lock stays as it is.
//
// On failure the lock is over, and the error says so as [Lock.Err] does; or ctx has ended, and the lock is held,
// exclusively still or shared already.
//
// There is no way back: two holders of a shared lock that both wait to have it exclusively would wait for one
// another for ever. Release the lock and acquire it anew, with a new token, and look at the data anew.
func (l *Lock) Downgrade(ctx context.Context) error {
	if err := l.hold.Downgrade(ctx); err != nil {
		return fmt.Errorf("pgbaton: downgrade lock %v: %w", l.key, err)
	}
	return nil
}

// Release ends the lock. Nil means that it was held without a break until this call, as far as the server,
// or for a hand-over within the process the client's trust in its connection, can say. An error that
// matches [ErrLost] means that it was not, or that nobody can tell; there is nothing left to release.
//
// It is safe to call twice, in defer, and after ctx has ended: a release is never cut short, and ctx is not
// used. It returns within TTL on a dead network. A second call returns what the first did.
func (l *Lock) Release(ctx context.Context) error {
	if err := l.hold.Release(); err != nil {
		return fmt.Errorf("pgbaton: release lock %v: %w", l.key, err)
	}
	return nil
}
