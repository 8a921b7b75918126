package link

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// keep watches the link's trust, pings while it is idle, and calls the link's own reader to stand by.
func (l *Link) keep() {
	defer l.workers.Done()
	timer := time.NewTimer(idleAfter)
	defer timer.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-l.nudge:
		case <-timer.C:
		}
		now := time.Now()
		if !l.Trusted(now) {
			l.Fail(l.Expired())
			return
		}
		timer.Reset(l.upkeep(now))
	}
}

// upkeep does what is due and returns for how long nothing else will be.
func (l *Link) upkeep(now time.Time) time.Duration {
	pingEvery := l.ttl / 3
	l.mu.Lock()
	idle := len(l.flight) == 0 && len(l.queue) == 0
	silent, quiet := now.Sub(l.lastSent), now.Sub(l.lastAnswer)
	attended := l.attended
	standBy := idle && !l.reading && quiet >= idleAfter
	l.mu.Unlock()

	trustLeft := time.Duration(l.trusted.Load()) - now.Sub(l.born)
	wait := min(trustLeft, l.watch(now))
	switch {
	case idle && silent >= pingEvery:
		l.ping(now.Add(trustLeft))
		wait = min(wait, pingEvery)
	case idle:
		wait = min(wait, pingEvery-silent)
	default:
		wait = min(wait, pingEvery)
	}
	if standBy {
		chans.Signal(l.wake) // when it yields it will nudge
	} else if !attended {
		wait = min(wait, idleAfter) // callers read for themselves; look again soon
	}
	return max(wait, time.Millisecond)
}

// ping shows a sign of life. The keeper must not hang in a write that the network does not take.
func (l *Link) ping(trustEnds time.Time) {
	_ = l.conn.SetWriteDeadline(trustEnds)
	l.Submit(&Op{Kind: Ping})
	_ = l.conn.SetWriteDeadline(time.Time{})
	l.Attend()
}

// sqlMine lists this session's advisory locks, each with its key as the operations know it.
const sqlMine = `SELECT (classid::int8 << 32) | objid::int8, objsubid = 2, mode = 'ShareLock'
  FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()`

// holding is one row of sqlMine.
type holding struct {
	key  advisory.Key
	mode advisory.Mode
}

// mend sets right what failed batches left: it asks the server what is held, undoes the tries, completes the
// unlocks, and answers the operations. The caller is the link's own reader and nothing is in flight.
func (l *Link) mend() error {
	failed, release := l.seize()
	defer release()
	for {
		err := l.undo(failed)
		if err == nil {
			break
		}
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != queryCanceled || !l.Trusted(time.Now()) {
			return l.readError(err)
		}
	}
	for _, b := range failed {
		l.encoder.forget(b)
		b.refuse()
	}
	l.mu.Lock()
	if l.closed {
		defer l.mu.Unlock()
		return l.cause
	}
	l.failed = nil
	l.mu.Unlock()
	release()
	for _, b := range failed {
		markDone(b.ops)
		l.handler.Complete(b.ops, nil)
	}
	l.pump()
	return nil
}

// refuse gives the operations of a failed batch, which has been undone, their answers.
func (b *batch) refuse() {
	err := refusal(b.err)
	var culprit *Op
	if b.step < len(b.steps) {
		culprit = b.steps[b.step].call
	}
	for _, op := range b.ops {
		switch {
		case op.Kind == Unlock || op.Kind == Downgrade:
			op.OK = true
		case op.Kind == Call && culprit != nil && op != culprit:
			op.Rows, op.Err = nil, fmt.Errorf("%w: another of its transaction failed: %w", ErrRetry, err)
		default:
			op.Rows, op.Err = nil, err
		}
	}
}

// seize waits until nobody is sending any more (the answer to a batch can be there before its sender has
// returned from the write), and keeps it so until release, which may be called twice.
func (l *Link) seize() (failed []*batch, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.sending {
		l.sent.Wait()
	}
	l.sending = true
	return l.failed, sync.OnceFunc(func() {
		l.mu.Lock()
		l.sending = false
		l.mu.Unlock()
	})
}

// queryCanceled is the SQLSTATE of a statement that an operator cancelled. One who cancels again and again may
// hit the repair as well, which then starts anew, as long as the link can be trusted.
const queryCanceled = "57014"

// noStatement is the SQLSTATE of one that is not prepared.
const noStatement = "26000"

// undo unlocks what the operations of failed batches have locked, or should have unlocked, and finishes
// downgrades, which cannot be undone. Nothing else holds their keys on this link.
func (l *Link) undo(failed []*batch) error {
	if !slices.ContainsFunc(failed, func(b *batch) bool { return slices.ContainsFunc(b.ops, (*Op).locks) }) {
		return nil
	}
	held, err := l.mine()
	if err != nil {
		return err
	}
	b := &batch{sent: time.Now()}
	downgrading := false
	for _, f := range failed {
		for _, op := range f.ops {
			if !op.locks() || !held[holding{op.Key, op.Mode}] {
				continue
			}
			next := &Op{Kind: Unlock, Mode: op.Mode, Key: op.Key}
			if op.Kind == Downgrade {
				downgrading = true // it may be held exclusively more than once: look again
				if !held[holding{op.Key, advisory.Shared}] {
					next.Kind = Downgrade
				}
			}
			b.ops = append(b.ops, next)
		}
	}
	if len(b.ops) == 0 {
		return nil
	}
	l.encoder.encode(l.front, b)
	if err := l.front.Flush(); err != nil {
		return err
	}
	for {
		msg, err := l.receive()
		if err != nil {
			return err
		}
		finished, err := b.take(msg)
		switch {
		case err != nil:
			return err
		case finished && b.err != nil:
			return fmt.Errorf("undo a failed round trip: %w", b.err)
		case finished && downgrading:
			return l.undo(failed)
		case finished:
			return nil
		}
	}
}

// mine asks the server which advisory locks the session holds.
func (l *Link) mine() (map[holding]bool, error) {
	held := map[holding]bool{}
	sent := time.Now()
	l.front.SendQuery(&pgproto3.Query{String: sqlMine})
	if err := l.front.Flush(); err != nil {
		return nil, err
	}
	var failure error
	for {
		msg, err := l.receive()
		if err != nil {
			return nil, err
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			h, err := parseHolding(msg.Values)
			if err != nil {
				return nil, err
			}
			held[h] = true
		case *pgproto3.ErrorResponse:
			failure = fmt.Errorf("ask which locks are held: %w", pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.ReadyForQuery:
			if failure != nil {
				return nil, failure
			}
			l.trust(sent)
			return held, nil
		}
	}
}

func parseHolding(values [][]byte) (holding, error) {
	var h holding
	if len(values) != 3 {
		return h, errProtocol
	}
	if _, err := fmt.Sscan(string(values[0]), &h.key.ID); err != nil {
		return h, errProtocol
	}
	h.key.Pair = string(values[1]) == "t"
	if string(values[2]) == "t" {
		h.mode = advisory.Shared
	}
	return h, nil
}

// refusal translates the server's error for the operations that it ended.
func refusal(err *pgconn.PgError) error {
	switch err.Code {
	case "53200": // out_of_memory; with this hint it is the lock table
		return fmt.Errorf("%w: the server's lock table is full: raise max_locks_per_transaction: %w", lockerr.TooManyLocks, err)
	case queryCanceled, // by an operator: nothing in the library cancels a link
		noStatement: // the round trip before was to prepare it, and failed
		return fmt.Errorf("%w: %w", ErrRetry, err)
	}
	return pgerr.Schema(err)
}

// ErrRetry marks an operation that was cut off from outside and may simply be submitted again.
var ErrRetry = errors.New("operation cancelled on the server")
