package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
)

// Kinds of hammer. All but chaos and readers change counters that only exclusion keeps right, and that refuse a token
// which is not greater than the one before.
const (
	ByAcquire  = "acquire"
	ByTry      = "try"
	ByMix      = "mix"      // three readers for each writer
	ByDo       = "do"       // Client.Do
	ByHandover = "handover" // a counter in shared memory, so that most grants are hand-overs
	Readers    = "readers"  // shared only, each for Hold; no counter
	Chaos      = "chaos"    // every operation, many with contexts that end soon; no counter
)

// hammer is a load of Clients × Goroutines on Keys keys, for a while.
type hammer struct {
	*child

	cmd     Command
	spell   spell
	pool    *pgxpool.Pool
	shared  *sharedCounter
	counts  map[string]*atomic.Int64
	failMu  sync.Mutex
	failure error
}

var errLost = errors.New("lost")

func (c *child) hammer(ctx context.Context, cmd Command) (Answer, error) {
	h := &hammer{child: c, cmd: cmd, counts: map[string]*atomic.Int64{}}
	for _, name := range []string{"granted", "changed", "refused", "lost"} {
		h.counts[name] = &atomic.Int64{}
	}
	var err error
	if cmd.File != "" {
		if h.shared, err = openCounter(cmd.File); err != nil {
			return Answer{}, err
		}
		defer h.shared.close()
	}
	if h.pool, err = openPool(ctx, cmd.DSN); err != nil {
		return Answer{}, err
	}
	defer h.pool.Close()
	var clients []*pgbaton.Client
	for range max(cmd.Clients, 1) {
		client, err := openClient(ctx, cmd)
		if err != nil {
			for _, opened := range clients {
				_ = opened.Close(ctx)
			}
			return Answer{}, err
		}
		clients = append(clients, client)
	}
	h.spell = spell{stopped: &c.stopped, end: time.Now().Add(cmd.For)}
	var wg sync.WaitGroup
	for _, client := range clients {
		for i := range cmd.Goroutines {
			wg.Go(func() { h.run(ctx, client, i) })
		}
	}
	wg.Wait()
	for _, client := range clients {
		if err := client.Close(ctx); err != nil && !cmd.Faults {
			h.fail(err)
		}
	}
	answer := Answer{Counts: map[string]int64{}}
	for name, n := range h.counts {
		answer.Counts[name] = n.Load()
	}
	return answer, h.failure
}

func openPool(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = 3
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off" // seen by others at once all the same
	return pgxpool.NewWithConfig(ctx, cfg)
}

func (h *hammer) fail(err error) {
	h.failMu.Lock()
	defer h.failMu.Unlock()
	if h.failure == nil {
		h.failure = err
	}
}

// over reports whether the hammer is to stop. A process that others were faster than goes on when they have done their part.
func (h *hammer) over() bool {
	h.failMu.Lock()
	failed := h.failure != nil
	h.failMu.Unlock()
	return failed || h.spell.over(h.counts["granted"].Load() > 0)
}

func (h *hammer) run(ctx context.Context, client *pgbaton.Client, number int) {
	for round := 0; !h.over(); round++ {
		key := numbered(h.cmd.Key, rand.IntN(max(h.cmd.Keys, 1)))
		err := h.round(ctx, client, key, number+round)
		switch {
		case errors.Is(err, errLost) && h.cmd.Faults:
			h.counts["lost"].Add(1)
		case err != nil:
			h.fail(fmt.Errorf("%s: %w", key, err))
		}
	}
}

func (h *hammer) round(ctx context.Context, client *pgbaton.Client, key string, round int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch h.cmd.Kind {
	case ByDo:
		return client.Do(ctx, pgbaton.Name(key), func(ctx context.Context, lock *pgbaton.Lock) error {
			h.counts["granted"].Add(1)
			return h.change(ctx, key, int64(lock.Token()))
		})
	case ByMix:
		return h.hold(ctx, client, key, round%4 != 0, false)
	case Readers:
		return h.hold(ctx, client, key, true, false)
	case ByTry:
		return h.hold(ctx, client, key, false, true)
	case Chaos:
		return h.chaos(ctx, client, key)
	default:
		return h.hold(ctx, client, key, false, false)
	}
}

// hold acquires, does what the lock is for, and releases.
func (h *hammer) hold(ctx context.Context, client *pgbaton.Client, key string, shared, try bool) error {
	lock, r := h.obtain(ctx, client, key, shared, try)
	if lock == nil {
		if (try && r.NotAcquired) || (h.cmd.Faults && r.NotAcquired && r.TimedOut) {
			h.counts["refused"].Add(1)
			time.Sleep(rand.N(500 * time.Microsecond)) //nolint:gosec // a try that failed tries again a little later
			return nil
		}
		return errors.New(r.Err)
	}
	h.counts["granted"].Add(1)
	var err error
	switch {
	case h.cmd.Kind == Chaos || h.cmd.Kind == Readers:
		time.Sleep(h.cmd.Hold)
	case shared:
		err = h.look(ctx, key, r.Token)
	default:
		err = h.change(ctx, key, r.Token)
	}
	r = h.give(ctx, lock)
	switch {
	case r.Lost:
		return errors.Join(err, fmt.Errorf("%w: %s", errLost, r.Err))
	case !r.OK():
		return errors.Join(err, errors.New(r.Err))
	}
	return err
}

// chaos is one of the operations, at random; half of the contexts end soon.
func (h *hammer) chaos(ctx context.Context, client *pgbaton.Client, key string) error {
	shared, try := rand.IntN(3) == 0, rand.IntN(4) == 0 //nolint:gosec // no secret
	if !try && rand.IntN(2) == 0 {                      //nolint:gosec // no secret
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, rand.N(20*time.Millisecond)) //nolint:gosec // no secret
		defer cancel()
		lock, r := h.obtain(ctx, client, key, shared, false)
		if lock == nil {
			h.counts["refused"].Add(1)
			if !r.NotAcquired || !r.TimedOut {
				return errors.New(r.Err)
			}
			return nil
		}
		h.counts["granted"].Add(1)
		if r = h.give(ctx, lock); r.Lost {
			return fmt.Errorf("%w: %s", errLost, r.Err)
		} else if !r.OK() {
			return errors.New(r.Err)
		}
		return nil
	}
	return h.hold(ctx, client, key, shared, try)
}

// change is a read-modify-write in two statements, which only exclusion keeps right.
func (h *hammer) change(ctx context.Context, key string, token int64) error {
	defer h.counts["changed"].Add(1)
	if h.shared != nil {
		return h.shared.change(token)
	}
	var value, before int64
	if err := h.pool.QueryRow(ctx, "SELECT value, token FROM counter WHERE key = $1", key).Scan(&value, &before); err != nil {
		return err
	}
	if token <= before {
		return fmt.Errorf("token %d after %d", token, before)
	}
	_, err := h.pool.Exec(ctx, "UPDATE counter SET value = $2, token = $3 WHERE key = $1", key, value+1, token)
	return err
}

// look reads twice: under a shared lock nothing may change, and no writer's token be greater.
func (h *hammer) look(ctx context.Context, key string, token int64) error {
	const read = "SELECT value, token FROM counter WHERE key = $1"
	var first, second, writer int64
	if err := h.pool.QueryRow(ctx, read, key).Scan(&first, &writer); err != nil {
		return err
	}
	if err := h.pool.QueryRow(ctx, read, key).Scan(&second, &writer); err != nil {
		return err
	}
	if first != second || token <= writer {
		return fmt.Errorf("under a shared lock with token %d: %d, then %d, writer's token %d", token, first, second, writer)
	}
	return nil
}
