package lockqueue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
)

const (
	stmtSeveral = "pgbaton_wait_several"
	sqlSeveral  = "SELECT gates_held, keys_held FROM pgbaton.wait_for_turns($1, $2, $3, $4, $5, $6)"
)

const (
	// signOfLife is how often the session of a turn says that the process lives.
	signOfLife = 250 * time.Millisecond
	// gatherFor is how long a wait keeps its session from other tickets, with what it has gathered, at first.
	// It is twice as long each time that it had to give way: no key that is released sooner or later keeps it
	// waiting for ever.
	gatherFor   = 2 * time.Second
	mostDoubles = 3 // 16 s: else single keys would wait for minutes
)

// waitForSeveral waits for a wait's turns. Before it leaves, it gives back all that the session holds.
func (w *queuer) waitForSeveral(t *ticket) (err error) {
	wait := t.wait
	gates, keys, began, pause := 0, 0, time.Now(), firstTry
	defer func() {
		w.setPlaced(wait, false)
		w.setGot(wait, 0, false)
		if gates > 0 && err == nil {
			err = w.freeGates()
		}
	}()
	if err := w.prepareSeveral(wait); err != nil {
		return err
	}
	w.setPlaced(wait, true)
	for {
		if w.mustStop(t, began) {
			return nil
		}
		if gates, keys, err = w.gather(t, gates, keys); err != nil {
			return err
		}
		if gates == wait.all && keys == wait.keys {
			again, err := w.turn(t, began)
			if err != nil || !again {
				return err
			}
			keys, pause = 0, firstTry
		} else if w.slice == 0 {
			w.sleep(pause)
			pause = min(2*pause, lastTry)
		}
	}
}

// mustStop reports whether the queuer should stop working for a wait: it is unwanted, or others need the queuer and the wait has
// had it for long enough.
func (w *queuer) mustStop(t *ticket, began time.Time) bool {
	crowded := w.queue.cfg.Budget.Crowded()
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case t.left || q.ctx.Err() != nil || crowded:
		return true
	case len(q.line) == 0:
		return false
	}
	patience := max(w.slice, lastTry)
	if t.wait.keys > 0 {
		patience = gatherFor << min(t.wait.rounds, mostDoubles)
	}
	if time.Since(began) < patience {
		return false
	}
	t.wait.rounds++
	return true
}

// gather waits for the next gates and keys, for a slice at the most, and returns how many of each are held. When
// they are all, the keys have been given back.
func (w *queuer) gather(t *ticket, gates, keys int) (gatesHeld, keysHeld int, err error) {
	wait := t.wait
	row, err := w.call(t, w.slice, stmtSeveral, [][]byte{
		wait.gates, wait.numbers, wait.pairs, pgtext.Int(int64(gates)), pgtext.Int(int64(keys)), pgtext.Int(w.slice.Milliseconds()),
	})
	if err != nil {
		return gates, keys, err
	}
	gatesHeld, err1 := strconv.Atoi(string(row[0]))
	keysHeld, err2 := strconv.Atoi(string(row[1]))
	if err := errors.Join(err1, err2); err != nil {
		return gates, keys, fmt.Errorf("wait in the server's queue: %w", err)
	}
	got := keysHeld
	if got == wait.keys { // they were given back
		got = 0
	}
	w.setGot(wait, got, keysHeld < wait.keys)
	return gatesHeld, keysHeld, nil
}

func (w *queuer) setPlaced(wait *Wait, placed bool) {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	wait.placed = placed
}

// setGot records how far a wait has come.
func (w *queuer) setGot(wait *Wait, got int, known bool) {
	w.queue.mu.Lock()
	moved := wait.got != got || wait.known != known
	wait.got, wait.known = got, known
	w.queue.mu.Unlock()
	if moved {
		chans.Signal(wait.moved)
	}
}

// turn is a wait's turn, until its owner has used it, it has lasted too long, or the queuer must leave. It returns true
// if the keys shall be waited for again.
func (w *queuer) turn(t *ticket, began time.Time) (again bool, err error) {
	wait, q := t.wait, w.queue
	q.mu.Lock()
	wait.turn, wait.over, wait.busy = true, false, wait.keys > 0
	q.mu.Unlock()
	chans.Signal(wait.ready)
	defer func() {
		q.mu.Lock()
		wait.turn = false
		q.mu.Unlock()
	}()
	sign := time.NewTicker(signOfLife)
	defer sign.Stop()
	var limit <-chan time.Time
	if wait.keys > 0 {
		limit = time.After(w.turnLimit())
	}
	for {
		q.mu.Lock()
		over, left := wait.over, t.left
		q.mu.Unlock()
		switch {
		case left:
			return false, nil
		case over:
			return wait.keys > 0, nil
		case wait.keys == 0 && w.mustStop(t, began):
			return false, nil
		}
		select {
		case <-wait.nudge:
		case <-limit:
			return false, nil
		case <-q.ctx.Done():
			return false, nil
		case <-sign.C:
			if err := w.ping(t); err != nil {
				return false, err
			}
		}
	}
}

// ping gives a sign of life, and fails when the session is dead.
func (w *queuer) ping(t *ticket) error {
	_, err := w.call(t, 0, stmtSeveral, [][]byte{[]byte("{}"), []byte("{}"), []byte("{}"), pgtext.Int(0), pgtext.Int(0), pgtext.Int(0)})
	return err
}

// prepareSeveral prepares the statement for waits. If the schema lacks its function, the wait fails.
func (w *queuer) prepareSeveral(wait *Wait) error {
	if w.several {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.queue.ctx, w.queue.cfg.TTL/4)
	defer cancel()
	_, err := w.session.PgConn().Prepare(ctx, stmtSeveral, sqlSeveral, nil)
	if pgerr.Class(err) == pgerr.SyntaxOrAccess {
		err = fmt.Errorf("%w: function pgbaton.wait_for_turns cannot be used: run the migrations: %w", lockerr.Schema, err)
		wait.fail(err)
	}
	if err != nil {
		return fmt.Errorf("prepare the wait: %w", err)
	}
	w.several = true
	return nil
}
