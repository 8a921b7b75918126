package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// DoOpts are the settings of [Client.DoWith], [Client.DoAll], [Client.DoTx], [Client.DoSQLTx] and [Semaphore.DoWith]. Nil
// means the defaults. A setting that a call has no use for is refused.
type DoOpts struct {
	// Wait bounds the wait for the lock, and nothing else: fn runs as long as its context lets it. NoWait does not wait for
	// other holders, as [Client.TryAcquire]. An error by Wait matches [ErrNotAcquired].
	//
	// Defaults to no bound but that of the context.
	Wait time.Duration

	// Shared takes the lock in the mode of [Client.AcquireShared]. It is for single keys.
	//
	// Defaults to false: exclusively.
	Shared bool

	// MaxHold is how long the lock is held at the most. Then it is lost, with the reason [LostTooLong]: fn's context ends,
	// the lock goes to others, and the call returns [ErrLost] when fn has returned. The lock does not stop an fn
	// that heeds no context; Fence keeps such an fn from committing.
	//
	// Defaults to [Config.MaxHold].
	MaxHold time.Duration

	// Fence begins each transaction of [Client.DoTx] and [Client.DoSQLTx] with [AssertHeld].
	//
	// Defaults to false.
	Fence bool

	// Tx is about the transaction of [Client.DoTx] and [Client.DoSQLTx].
	//
	// Defaults to those of [InTx].
	Tx TxOpts
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
	ctx context.Context, key Key, opts *DoOpts, fn func(ctx context.Context, lock *Lock) error,
) error {
	o, err := opts.forLocks(c, false)
	if err != nil {
		return fmt.Errorf("%s lock %v: %w", doing, key, err)
	}
	lock, err := c.acquireFor(ctx, key, o)
	if err != nil {
		return err
	}
	return lock.do(ctx, fn)
}

// DoAll is [Client.DoWith] for several keys, which are held together as by [Client.AcquireAll].
func (c *Client) DoAll(
	ctx context.Context, keys []Key, opts *DoOpts, fn func(ctx context.Context, locks *LockSet) error,
) (err error) {
	o, err := opts.forLocks(c, false)
	if err == nil && o.Shared {
		err = errors.New("DoOpts.Shared is for single keys, a set is exclusive")
	}
	if err != nil {
		return fmt.Errorf("%s locks: %w", doing, err)
	}
	wait, cancel := o.waiting(ctx)
	set, err := c.acquireAll(wait, keys, o.Wait == NoWait)
	cancel()
	if err != nil {
		return err
	}
	set.parent = ctx
	for _, lock := range set.locks {
		lock.parent = ctx
		if o.MaxHold > 0 {
			limit(lock.hold, o.MaxHold)
		}
	}
	defer func() { err = also(err, set.Release(ctx)) }()
	ctx, stop := context.WithCancelCause(c.holding(ctx, set.ordered(), set.holds()))
	defer stop(nil)
	set.end.OnEnd(stop)
	return fn(ctx, set)
}

// acquireFor takes the lock for a call of the Do family.
func (c *Client) acquireFor(ctx context.Context, key Key, o DoOpts) (*Lock, error) {
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

// DoWith is [Semaphore.Do] with settings.
func (s *Semaphore) DoWith(
	ctx context.Context, n int, opts *DoOpts, fn func(ctx context.Context, permit *Permit) error,
) (err error) {
	o, err := opts.forLocks(s.client, false)
	if err == nil && o.Shared {
		err = errors.New("DoOpts.Shared is for locks, a permit is shared by its nature")
	}
	if err != nil {
		return fmt.Errorf("%s %d of semaphore %q: %w", doing, n, s.name, err)
	}
	wait, cancel := o.waiting(ctx)
	p, err := s.acquire(wait, n, o.Wait == NoWait)
	cancel()
	if err != nil {
		return err
	}
	p.parent = ctx
	if o.MaxHold > 0 {
		limit(p.permit, o.MaxHold)
	}
	defer func() { err = also(err, p.Release(ctx)) }()
	held, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p.permit.OnEnd(stop)
	return fn(held, p)
}

// doing begins the errors of the Do family about its settings.
const doing = "pgbaton: do with"

// forLocks fills a copy, and says what is wrong with it. Only transactions can be fenced.
func (o *DoOpts) forLocks(c *Client, tx bool) (DoOpts, error) {
	var opts DoOpts
	if o != nil {
		opts = *o
	}
	switch {
	case opts.Wait < 0 && opts.Wait != NoWait:
		return opts, fmt.Errorf("DoOpts.Wait is %v: give a time, NoWait, or zero for no bound", opts.Wait)
	case opts.MaxHold < 0:
		return opts, fmt.Errorf("DoOpts.MaxHold is %v: give a time, or zero for that of the Config", opts.MaxHold)
	case !tx && opts.Fence:
		return opts, errors.New("DoOpts.Fence is for DoTx and DoSQLTx: only a transaction can be fenced; see AssertHeld")
	case !tx && opts.Tx != (TxOpts{}):
		return opts, errors.New("DoOpts.Tx is for DoTx and DoSQLTx")
	}
	if opts.MaxHold == 0 {
		opts.MaxHold = c.cfg.MaxHold
	}
	return opts, nil
}

// waiting is ctx for the wait alone.
func (o *DoOpts) waiting(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.Wait <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, o.Wait, fmt.Errorf("the wait of %v is over", o.Wait))
}

// limitLock, limitSet and limitPermit apply Config.MaxHold to what was acquired, if it was.
func (c *Client) limitLock(lock *Lock, err error) (*Lock, error) {
	if err == nil && c.cfg.MaxHold > 0 {
		limit(lock.hold, c.cfg.MaxHold)
	}
	return lock, err
}

func (c *Client) limitSet(set *LockSet, err error) (*LockSet, error) {
	if err == nil && c.cfg.MaxHold > 0 {
		for _, lock := range set.locks {
			limit(lock.hold, c.cfg.MaxHold)
		}
	}
	return set, err
}

func (c *Client) limitPermit(p *Permit, err error) (*Permit, error) {
	if err == nil && c.cfg.MaxHold > 0 {
		limit(p.permit, c.cfg.MaxHold)
	}
	return p, err
}

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
