package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// ServiceWindow is the window of a service's cron. A run that failed is run again within it.
const ServiceWindow = 2 * time.Second

// The roles of a service's process are names that begin with the command's Key.
const (
	LeaderRole = "/leader"
	CronRole   = "/cron"
	PermitRole = "/permits" // one permit of this semaphore
	LockRole   = "/lock"    // of which there are /0 … /Keys-1
	MixedRole  = "/mixed"   // as many, which are shared, tried, and taken in sets of Count
)

// service is a process of a service: it is a candidate to lead, runs the cron where it is due, and takes permits and locks one
// after the other, each for Hold; with Count it takes locks in all other ways as well. It ends with [Stop], and then has nothing and is
// no candidate. It outlives losses. With a DSN the leader writes, fenced.
type service struct {
	*child

	cmd    Command
	client *pgbaton.Client
	ended  context.Context // ends when the service is to end
	end    context.CancelFunc
	sets   setCounts

	mu      sync.Mutex
	failure error
}

func (c *child) serve(ctx context.Context, cmd Command) (Answer, error) {
	s := &service{child: c, cmd: cmd, client: c.client(cmd.Client)}
	s.ended, s.end = context.WithCancel(ctx)
	defer s.end()
	c.mu.Lock()
	c.services[cmd.Client] = s
	c.mu.Unlock()
	if c.stopped.Load() {
		s.end()
	}
	lanes := []func(context.Context) error{s.lead, s.cron, s.permit, s.oneLock}
	if cmd.Count > 0 {
		lanes = append(lanes, s.shared, s.try, s.set)
	}
	var all sync.WaitGroup
	for _, round := range lanes {
		all.Go(func() {
			for s.ended.Err() == nil {
				if err := round(ctx); err != nil {
					s.fail(err)
				}
				time.Sleep(rand.N(cmd.Pause)) //nolint:gosec // no secret
			}
		})
	}
	all.Wait()
	return Answer{}, s.failure
}

// fail ends the service, and notes why if it does not expect it: that its client is closed it does.
func (s *service) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !errors.Is(err, pgbaton.ErrClosed) && s.failure == nil {
		s.failure = err
	}
	s.end()
}

// lead is a candidate to the end of the service.
func (s *service) lead(context.Context) error {
	err := s.campaign(s.ended, s.client, s.cmd, s.cmd.Key+LeaderRole)
	if s.ended.Err() != nil {
		return nil
	}
	return err
}

// cron runs what is due.
func (s *service) cron(ctx context.Context) error {
	ctx, cancel := within(ctx, s.cmd)
	defer cancel()
	called, name := history.Now(), s.cmd.Key+CronRole
	var op int64
	err := s.client.OnceWith(ctx, name, ServiceWindow, &pgbaton.LockOpts{RetryFailed: true},
		func(ctx context.Context, lock *pgbaton.Lock) error {
			at := history.Now()
			op = s.log.Op()
			s.log.Append(history.Event{At: at, Kind: history.Ran, Op: op, From: called, Key: name, Token: int64(lock.Token())})
			s.log.Append(history.Event{At: called, Kind: history.Call, Op: op, Key: name, Mode: history.Exclusive})
			s.log.Append(history.Event{At: at, Kind: history.Granted, Op: op, Token: int64(lock.Token())})
			s.dwell(ctx, op, s.cmd.Hold)
			return context.Cause(ctx)
		})
	s.settle(op, err)
	return unexpected(err)
}

func (s *service) permit(ctx context.Context) error {
	name := s.cmd.Key + PermitRole
	within, cancel := within(ctx, s.cmd)
	defer cancel()
	semaphore, err := s.semaphore(within, s.cmd.Client, name)
	if err != nil {
		return unexpected(err)
	}
	h, r := s.obtainPermits(within, semaphore, name, 1, false)
	return s.hold(ctx, h, r)
}

func (s *service) oneLock(ctx context.Context) error {
	within, cancel := within(ctx, s.cmd)
	defer cancel()
	key := numbered(s.cmd.Key+LockRole, rand.IntN(s.cmd.Keys)) //nolint:gosec // no secret
	h, r := s.obtain(within, s.client, key, false, false)
	return s.hold(ctx, h, r)
}

// shared, try and set take keys that all of them take.
func (s *service) shared(ctx context.Context) error { return s.mixed(ctx, true, rand.IntN(4) == 0) } //nolint:gosec // no secret

func (s *service) try(ctx context.Context) error { return s.mixed(ctx, false, true) }

func (s *service) mixed(ctx context.Context, shared, try bool) error {
	within, cancel := within(ctx, s.cmd)
	defer cancel()
	h, r := s.obtain(within, s.client, numbered(s.cmd.Key+MixedRole, rand.IntN(s.cmd.Keys)), shared, try) //nolint:gosec // no secret
	return s.hold(ctx, h, r)
}

func (s *service) set(ctx context.Context) error {
	cmd := s.cmd
	cmd.Key += MixedRole
	return unexpected(s.takeSet(ctx, s.client, cmd, &s.sets))
}

// unexpected returns an error that a service does not outlive: not a loss, a lock that others have, or a machine that is slow. The error
// of another engine, with which no wait ends, matches ErrNotAcquired as well.
func unexpected(err error) error {
	outlives := errors.Is(err, pgbaton.ErrNotAcquired) || errors.Is(err, pgbaton.ErrLost) || errors.Is(err, context.DeadlineExceeded)
	if outlives && !errors.Is(err, pgbaton.ErrEngine) {
		return nil
	}
	return err
}

// hold keeps what was acquired, if it was, and gives it back.
func (s *service) hold(ctx context.Context, h *held, r Result) error {
	if h == nil {
		return unexpected(r.err)
	}
	timer := time.NewTimer(s.cmd.Hold)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.lock.Done():
		s.log.Append(history.Event{At: history.Now(), Kind: history.Lost, Op: h.op})
	}
	return unexpected(s.give(ctx, h).err)
}
