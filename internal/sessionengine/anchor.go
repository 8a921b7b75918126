package sessionengine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/session"
)

// requests is the pipeline of an anchor. The pipeline does all that an anchor can do beyond owning it.
type requests = pipeline.Pipeline[*engine.Request]

// anchor is a session that holds advisory locks.
type anchor struct {
	*requests
	engine *Engine

	id     int64       // of the session as a client of the engine; unlike others
	joined atomic.Bool // the engine was agreed, see stmtJoin

	listening atomic.Bool // see [Engine.Listen]

	held  atomic.Int32 // keys that it was picked for
	drawn int64        // the newest draw, or what the sequence was at; the reader's
	lost  bool         // guarded by the engine's mutex
}

var (
	_ engine.Anchor                   = (*anchor)(nil)
	_ engine.Identified               = (*anchor)(nil)
	_ pipeline.Owner[*engine.Request] = (*anchor)(nil)
)

// dial opens a session and makes an anchor of it.
func (e *Engine) dial(ctx context.Context) (*anchor, error) {
	s, err := e.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	e.table.size.Store(int64(s.Server.LockTable))
	a := &anchor{engine: e, drawn: s.Drawn, id: rand.Int64()} //nolint:gosec // only has to be unlike others
	a.requests, err = pipeline.New(ctx, s, pipeline.Owner[*engine.Request](a), pipeline.Config{
		TTL: e.cfg.TTL, Workers: &e.pipes, Notified: e.cfg.Notified,
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Expire implements [engine.Anchor].
func (a *anchor) Expire() error {
	cause := a.Expired()
	a.Fail(cause)
	return cause
}

// Client implements [engine.Identified].
func (a *anchor) Client() int64 {
	if !a.joined.Load() {
		return 0
	}
	return a.id
}

// Drop implements [engine.Anchor].
func (a *anchor) Drop() { a.held.Add(-1) }

// maxBatch bounds one round trip, so that its request, some 30 bytes an operation, fits into the socket's buffer.
const maxBatch = 1024

// Enqueue implements [pipeline.Owner].
func (a *anchor) Enqueue(waiting, ops []*engine.Request) []*engine.Request {
	return append(waiting, ops...)
}

// Fits implements [pipeline.Owner].
func (a *anchor) Fits(waiting []*engine.Request) int { return min(len(waiting), maxBatch) }

// NewRound implements [pipeline.Owner].
func (a *anchor) NewRound() pipeline.Round[*engine.Request] { return &round{anchor: a} }

// Lost implements [pipeline.Owner]. Each of the requests belongs to a key of the anchor, whose loss is reported.
func (a *anchor) Lost(_ []*engine.Request, cause error) {
	first := a.engine.remove(a)
	a.engine.manager.Lost(a, cause)
	if first {
		a.engine.cfg.Report("a connection was lost, with the locks on it", cause)
	}
}

// Closed implements [pipeline.Owner].
func (a *anchor) Closed() {
	a.engine.cfg.Budget.Give(session.Holding)
	chans.Signal(a.engine.want) // another may be opened
}

// close gives back all that the anchor holds and ends it.
func (a *anchor) close(ctx context.Context) error {
	if err := a.Close(ctx, &stmtUnlockAll); err != nil {
		return fmt.Errorf("close: the server did not confirm that the locks are free: %w", err)
	}
	return nil
}

// draw takes note of a token that was drawn.
func (a *anchor) draw(token int64) error {
	if token <= a.drawn {
		return &lockerr.LossError{Reason: lockerr.TokensWentBack, Cause: fmt.Errorf(
			"the sequence pgbaton.token gave %d after %d: somebody has altered it", token, a.drawn)}
	}
	a.drawn = token
	return nil
}
