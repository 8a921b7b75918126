package waitroom

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/session"
)

// place is one waiting session and the goroutine that uses it.
type place struct {
	room    *Room
	session *session.Session
	slice   time.Duration // 0: tries only
	several bool          // the statement for posts is prepared
	heard   time.Time     // when the server last answered

	// Guarded by the room's mutex.
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
	stmtWait = "pgbaton_wait"
	sqlWait  = "SELECT pgbaton.wait_for_turn($1, $2, $3, $4, $5, $6, $7)"
	sqlFree  = "SELECT pg_advisory_unlock_all()"

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
	// restFor is how long an idle session is kept: less than the server's patience with it.
	restFor = 400 * time.Millisecond
	// turnLimit is within which a turn is used or lost, and the session says that it lives: together with the way there
	// and back, less than the server's patience with a session that has nothing to say.
	turnLimit = 700 * time.Millisecond
	// firstTry and lastTry are the pauses between tries where there is no time to wait in.
	firstTry, lastTry = 5 * time.Millisecond, 100 * time.Millisecond
)

// run serves the line until there has been nothing to do for a while.
func (p *place) run() {
	r := p.room
	defer r.workers.Done()
	const firstPause, longestPause = 20 * time.Millisecond, 2 * time.Second
	pause := firstPause
	for {
		st := r.next(p)
		if st == nil {
			if !p.rest() && p.quit(false) {
				return
			}
			continue
		}
		err := p.serve(st)
		r.part(st, err != nil)
		if err == nil {
			pause = firstPause
		} else {
			p.hangUp()
			if r.ctx.Err() == nil {
				r.cfg.Report("a connection that waits for locks was lost, or cannot be opened; it is tried again", err)
			}
			p.sleep(rand.N(pause) + pause/2) //nolint:gosec // jitter, not a secret
			pause = min(2*pause, longestPause)
		}
		if (r.cfg.Budget.Crowded() || r.ctx.Err() != nil) && p.quit(true) {
			return
		}
	}
}

// rest waits for work; false when there was none for so long that the session is better closed.
func (p *place) rest() bool {
	r := p.room
	r.mu.Lock()
	r.idle++
	busy := len(r.line) > 0 // it may have come since
	r.mu.Unlock()
	timer := time.NewTimer(min(r.cfg.TTL/4, restFor))
	defer timer.Stop()
	rested := true
	if !busy {
		select {
		case <-r.wake:
		case <-timer.C:
			rested = false
		case <-r.ctx.Done():
			rested = false
		}
	}
	r.mu.Lock()
	r.idle--
	r.mu.Unlock()
	return rested
}

// quit closes the session and gives its place in the budget back, unless somebody came meanwhile.
func (p *place) quit(anyway bool) bool {
	p.hangUp()
	r := p.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if !anyway && len(r.line) > 0 && r.ctx.Err() == nil {
		return false
	}
	r.cfg.Budget.Give(session.Waiting)
	return true
}

func (p *place) hangUp() {
	if p.session != nil {
		p.session.HangUp()
		p.session = nil
	}
}

func (p *place) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.room.ctx.Done():
	}
}

// serve waits for what a stand wants until its turn was used, it is unwanted, or other stands need the place.
func (p *place) serve(st *stand) error {
	if p.session == nil {
		if err := p.dial(); err != nil {
			return err
		}
	}
	if st.post != nil {
		return p.attend(st)
	}
	return p.serveKey(st)
}

// serveKey waits for a key.
func (p *place) serveKey(st *stand) (err error) {
	atGate, waited, pause := false, false, firstTry
	defer func() {
		if atGate && err == nil {
			err = p.free()
		}
	}()
	for {
		wanted, others := p.room.wanted(st)
		others = others || p.room.cfg.Budget.Crowded()
		if !wanted || (others && waited) || p.room.ctx.Err() != nil {
			return nil
		}
		answer, err := p.wait(st, atGate, !others)
		if err != nil {
			return err
		}
		atGate = answer == turn || (answer == firstAtKey && !others)
		if answer == turn && p.announce(st) {
			return nil // and let the next process to the gate, also if the key is wanted again already
		}
		waited = answer != turn
		if waited && p.slice == 0 {
			p.sleep(pause)
			pause = min(2*pause, lastTry)
		}
	}
}

// announce tells the desk that it is its turn. False means that a passer-by was faster, and that the place
// shall stay at the gate. If the link does not answer, others shall have the turn.
func (p *place) announce(st *stand) bool {
	timer := time.NewTimer(p.turnLimit())
	defer timer.Stop()
	select {
	case taken := <-p.room.Desk.Turn(st.key):
		return taken
	case <-timer.C:
	case <-p.room.ctx.Done():
	}
	return true
}

func (p *place) turnLimit() time.Duration { return min(p.room.cfg.TTL/2, turnLimit) }

// wait stands in the server's queue for a slice at the most.
func (p *place) wait(st *stand, atGate, keepGate bool) (answer int, err error) {
	mode, until, ok := p.room.Desk.Need(st.key)
	if !ok { // it is about to be unwanted, or nobody could use a turn now
		return p.idle(atGate)
	}
	slice, statement := p.slice, stmtWait
	if !until.IsZero() {
		slice = max(min(slice, time.Until(until)), time.Millisecond)
	}
	params := [][]byte{
		number(st.key.ID), boolean(st.key.Pair), boolean(mode == advisory.Shared), number(st.key.Gate()),
		boolean(atGate), boolean(keepGate), number(slice.Milliseconds()),
	}
	if p.slice == 0 {
		statement, params = stmtTry, params[:len(params)-1]
	}
	row, err := p.call(st, slice, statement, params)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(row[0]))
}

// idle is a wait without a need for it. If that lasts, others shall come to the gate.
func (p *place) idle(atGate bool) (answer int, err error) {
	p.sleep(2 * time.Millisecond)
	if time.Since(p.heard) > signOfLife {
		return notFirst, p.free()
	}
	if atGate {
		return firstAtKey, nil
	}
	return notFirst, nil
}

// call runs a statement that may wait for a slice, and returns its only row.
func (p *place) call(st *stand, slice time.Duration, statement string, params [][]byte) (row [][]byte, err error) {
	p.room.mu.Lock()
	p.calling = !st.left
	p.room.mu.Unlock()
	defer func() { err = errors.Join(err, p.called()) }()
	ctx, cancel := context.WithTimeout(p.room.ctx, slice+p.room.cfg.TTL/4)
	defer cancel()
	result := p.session.PgConn().ExecPrepared(ctx, statement, params, nil, nil).Read()
	p.heard = time.Now()
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
func (p *place) called() error {
	p.room.mu.Lock()
	p.calling = false
	cancel := p.cancel
	p.cancel = nil
	p.room.mu.Unlock()
	if cancel == nil {
		return nil
	}
	if err := <-cancel; err != nil {
		return fmt.Errorf("cancel a wait: %w", err)
	}
	return nil
}

// free gives the gate back.
func (p *place) free() error {
	ctx, cancel := context.WithTimeout(p.room.ctx, p.room.cfg.TTL/4)
	defer cancel()
	if _, err := p.session.PgConn().Exec(ctx, sqlFree).ReadAll(); err != nil {
		return fmt.Errorf("leave the gate: %w", err)
	}
	p.heard = time.Now()
	return nil
}

// dial opens the place's session.
func (p *place) dial() error {
	ctx := p.room.ctx
	s, err := p.room.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	p.slice, p.several = session.WaitSlice(p.room.cfg.TTL, s.Server), false
	name, sql := stmtWait, sqlWait
	if p.slice == 0 {
		name, sql = stmtTry, sqlTry
	}
	ctx, cancel := context.WithTimeout(ctx, p.room.cfg.TTL/4)
	defer cancel()
	if _, err := s.PgConn().Prepare(ctx, name, sql, nil); err != nil {
		s.HangUp()
		return fmt.Errorf("prepare the wait: %w", err)
	}
	p.session, p.heard = s, time.Now()
	return nil
}

// abandon cancels the wait under way, so that it does not stand in the queue for nobody. The protocol's
// cancel names the session by a secret, so it cannot hit another's. The caller holds the room's mutex.
func (p *place) abandon() {
	if !p.calling {
		return
	}
	p.calling = false
	p.cancel = make(chan error, 1)
	pg, done := p.session.PgConn(), p.cancel
	p.room.workers.Add(1)
	go func() {
		defer p.room.workers.Done()
		ctx, cancel := context.WithTimeout(context.Background(), p.room.cfg.TTL/4)
		defer cancel()
		done <- pg.CancelRequest(ctx) // without it the wait ends with its slice
	}()
}

func number(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

func boolean(b bool) []byte { return strconv.AppendBool(nil, b) }
