package lockqueue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/session"
)

// queuer is one waiting session and the goroutine that uses it.
type queuer struct {
	queue   *Queue
	session *session.Session
	slice   time.Duration // 0: tries only
	several bool          // the statement for waits is prepared
	heard   time.Time     // when the server last answered

	// Guarded by the queue's mutex.
	calling bool       // in a wait on the server
	cancel  chan error // says whether the cancel under way has reached the server; nil if there is none
}

// Answers of pgbaton.wait_for_turn.
const (
	notFirst   = 0
	firstAtKey = 1
	turn       = 2
)

const (
	stmtWait     = "pgbaton_wait"
	sqlWait      = "SELECT pgbaton.wait_for_turn($1, $2, $3, $4, $5, $6, $7)"
	sqlUnlockAll = "SELECT pg_advisory_unlock_all()"

	// The same with tries alone, for servers whose deadlock_timeout leaves no time to wait in.
	stmtTry = "pgbaton_try_turn"
	sqlTry  = `SELECT CASE WHEN $5::bool OR pg_try_advisory_lock($4::int8) THEN
		CASE WHEN CASE
			WHEN $2::bool AND $3::bool THEN pg_try_advisory_xact_lock_shared(($1::int8 >> 32)::int4, (($1 << 32) >> 32)::int4)
			WHEN $2 THEN pg_try_advisory_xact_lock(($1 >> 32)::int4, (($1 << 32) >> 32)::int4)
			WHEN $3 THEN pg_try_advisory_xact_lock_shared($1)
			ELSE pg_try_advisory_xact_lock($1) END THEN 2
		WHEN $6::bool THEN 1
		WHEN pg_advisory_unlock($4) THEN 0 ELSE 0 END
		ELSE 0 END`
)

const (
	// idleFor is how long an idle session is kept: less than the server's patience with it.
	idleFor = 400 * time.Millisecond
	// turnLimit is within which a turn is used or lost, and the session says that it lives: together with the way there
	// and back, less than the server's patience with a session that has nothing to say.
	turnLimit = 700 * time.Millisecond
	// firstTry and lastTry are the pauses between tries where there is no time to wait in.
	firstTry, lastTry = 5 * time.Millisecond, 100 * time.Millisecond
)

// run works for the line until there has been nothing to do for a while.
func (w *queuer) run() {
	q := w.queue
	defer q.workers.Done()
	var redial backoff.Reconnect
	for {
		t := q.next(w)
		if t == nil {
			if !w.awaitWork() && w.quit(false) {
				return
			}
			continue
		}
		err := w.waitFor(t)
		q.release(t, err != nil)
		if err == nil {
			redial.Connected()
		} else {
			w.hangUp()
			if q.ctx.Err() == nil {
				q.cfg.Report("a connection that waits for locks was lost, or cannot be opened; it is tried again", err)
			}
			w.sleep(redial.Pause())
		}
		if (q.cfg.Budget.Crowded() || q.ctx.Err() != nil) && w.quit(true) {
			return
		}
	}
}

// awaitWork waits for work; false when there was none for so long that the session is better closed.
func (w *queuer) awaitWork() bool {
	q := w.queue
	q.mu.Lock()
	q.idle++
	busy := len(q.line) > 0 // it may have come since
	q.mu.Unlock()
	timer := time.NewTimer(min(q.cfg.TTL/4, idleFor))
	defer timer.Stop()
	found := true
	if !busy {
		select {
		case <-q.wake:
		case <-timer.C:
			found = false
		case <-q.ctx.Done():
			found = false
		}
	}
	q.mu.Lock()
	q.idle--
	q.mu.Unlock()
	return found
}

// quit closes the session and gives its place in the budget back, unless somebody came meanwhile.
func (w *queuer) quit(anyway bool) bool {
	w.hangUp()
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if !anyway && len(q.line) > 0 && q.ctx.Err() == nil {
		return false
	}
	q.cfg.Budget.Give(session.Waiting)
	return true
}

func (w *queuer) hangUp() {
	if w.session != nil {
		w.session.HangUp()
		w.session = nil
	}
}

func (w *queuer) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.queue.ctx.Done():
	}
}

// waitFor waits for what a ticket wants until its turn was used, it is unwanted, or other tickets need the queuer.
func (w *queuer) waitFor(t *ticket) error {
	if w.session == nil {
		if err := w.dial(); err != nil {
			return err
		}
	}
	if t.wait != nil {
		return w.waitForSeveral(t)
	}
	return w.waitForKey(t)
}

// waitForKey waits for a key.
func (w *queuer) waitForKey(t *ticket) (err error) {
	atGate, waited, pause := false, false, firstTry
	defer func() {
		if atGate && err == nil {
			err = w.freeGates()
		}
	}()
	for {
		wanted, others := w.queue.wanted(t)
		others = others || w.queue.cfg.Budget.Crowded()
		if !wanted || (others && waited) || w.queue.ctx.Err() != nil {
			return nil
		}
		answer, err := w.wait(t, atGate, !others)
		if err != nil {
			return err
		}
		atGate = answer == turn || (answer == firstAtKey && !others)
		if answer == turn && w.announce(t) {
			return nil // and let the next process to the gate, also if the key is wanted again already
		}
		waited = answer != turn
		if waited && w.slice == 0 {
			w.sleep(pause)
			pause = min(2*pause, lastTry)
		}
	}
}

// announce reports the turn to the lock manager. False means that a passer-by was faster, and that the queuer
// should stay at the gate. If it does not answer, the next process has the turn.
func (w *queuer) announce(t *ticket) bool {
	timer := time.NewTimer(w.turnLimit())
	defer timer.Stop()
	select {
	case taken := <-w.queue.cfg.Waiting.Turn(t.key):
		return taken
	case <-timer.C:
	case <-w.queue.ctx.Done():
	}
	return true
}

func (w *queuer) turnLimit() time.Duration { return min(w.queue.cfg.TTL/2, turnLimit) }

// wait waits in the server's queue for a slice at the most.
func (w *queuer) wait(t *ticket, atGate, keepGate bool) (answer int, err error) {
	mode, until, ok := w.queue.cfg.Waiting.Need(t.key)
	if !ok { // it is about to be unwanted, or nobody could use a turn now
		return w.idle(atGate)
	}
	slice, statement := w.slice, stmtWait
	if !until.IsZero() {
		slice = max(min(slice, time.Until(until)), time.Millisecond)
	}
	params := [][]byte{
		pgtext.Int(t.key.ID), pgtext.Bool(t.key.Pair), pgtext.Bool(mode == advisory.Shared), pgtext.Int(t.key.Gate()),
		pgtext.Bool(atGate), pgtext.Bool(keepGate), pgtext.Int(slice.Milliseconds()),
	}
	if w.slice == 0 {
		statement, params = stmtTry, params[:len(params)-1]
	}
	row, err := w.call(t, slice, statement, params)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(row[0]))
}

// idle is a wait without a need for it. If that lasts, others shall come to the gate.
func (w *queuer) idle(atGate bool) (answer int, err error) {
	w.sleep(2 * time.Millisecond)
	if time.Since(w.heard) > signOfLife {
		return notFirst, w.freeGates()
	}
	if atGate {
		return firstAtKey, nil
	}
	return notFirst, nil
}

// call runs a statement that may wait for a slice, and returns its only row.
func (w *queuer) call(t *ticket, slice time.Duration, statement string, params [][]byte) (row [][]byte, err error) {
	w.queue.mu.Lock()
	w.calling = !t.left
	w.queue.mu.Unlock()
	defer func() { err = errors.Join(err, w.called()) }()
	ctx, cancel := context.WithTimeout(w.queue.ctx, slice+w.queue.cfg.TTL/4)
	defer cancel()
	result := w.session.PgConn().ExecPrepared(ctx, statement, params, nil, nil).Read()
	w.heard = time.Now()
	if result.Err != nil {
		return nil, fmt.Errorf("wait in the server's queue: %w", result.Err)
	}
	if len(result.Rows) != 1 || len(result.Rows[0]) == 0 {
		return nil, errors.New("wait in the server's queue: no answer")
	}
	return result.Rows[0], nil
}

// called ends a wait. A cancel that is still on its way must not hit the session's next statement: there it
// would be an error, and a line in the server's log. After an error the session is not to be used.
func (w *queuer) called() error {
	w.queue.mu.Lock()
	w.calling = false
	cancel := w.cancel
	w.cancel = nil
	w.queue.mu.Unlock()
	if cancel == nil {
		return nil
	}
	if err := <-cancel; err != nil {
		return fmt.Errorf("cancel a wait: %w", err)
	}
	return nil
}

// freeGates gives back all that the session holds.
func (w *queuer) freeGates() error {
	ctx, cancel := context.WithTimeout(w.queue.ctx, w.queue.cfg.TTL/4)
	defer cancel()
	if _, err := w.session.PgConn().Exec(ctx, sqlUnlockAll).ReadAll(); err != nil {
		return fmt.Errorf("leave the gate: %w", err)
	}
	w.heard = time.Now()
	return nil
}

// dial opens the queuer's session.
func (w *queuer) dial() error {
	ctx := w.queue.ctx
	s, err := w.queue.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	w.slice, w.several = session.WaitSlice(w.queue.cfg.TTL, s.Server), false
	name, sql := stmtWait, sqlWait
	if w.slice == 0 {
		name, sql = stmtTry, sqlTry
	}
	ctx, cancel := context.WithTimeout(ctx, w.queue.cfg.TTL/4)
	defer cancel()
	if _, err := s.PgConn().Prepare(ctx, name, sql, nil); err != nil {
		s.HangUp()
		return fmt.Errorf("prepare the wait: %w", err)
	}
	w.session, w.heard = s, time.Now()
	return nil
}

// abandon cancels the wait under way, so that no session waits for nobody. The protocol's
// cancel names the session by a secret, so it cannot hit another's. The caller holds the queue's mutex.
func (w *queuer) abandon() {
	if !w.calling {
		return
	}
	w.calling = false
	w.cancel = make(chan error, 1)
	pg, done := w.session.PgConn(), w.cancel
	w.queue.workers.Add(1)
	go func() {
		defer w.queue.workers.Done()
		ctx, cancel := context.WithTimeout(context.Background(), w.queue.cfg.TTL/4)
		defer cancel()
		done <- pg.CancelRequest(ctx) // without it the wait ends with its slice
	}()
}
