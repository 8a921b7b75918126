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
	slice   time.Duration

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
			r.cfg.Report("a connection that waits for locks was lost, or cannot be opened; it is tried again", err)
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
	timer := time.NewTimer(r.cfg.TTL / 4)
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

// serve waits for a key until its turn was used, it is unwanted, or other keys need the place.
func (p *place) serve(st *stand) (err error) {
	if p.session == nil {
		if err = p.dial(); err != nil {
			return err
		}
	}
	atGate, waited := false, false
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
		if here, home := p.session.Server.Identity, p.room.cfg.Home(); here != home {
			return fmt.Errorf("stands on another server (%s) than the one that holds the locks (%s)", here, home)
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
	}
}

// announce tells the desk that it is its turn. False means that a passer-by was faster, and that the place
// shall stay at the gate. Without a link to use the turn with, others shall have it.
func (p *place) announce(st *stand) bool {
	timer := time.NewTimer(p.room.cfg.TTL / 4)
	defer timer.Stop()
	select {
	case taken := <-p.room.Desk.Turn(st.key):
		return taken
	case <-timer.C:
	case <-p.room.ctx.Done():
	}
	return true
}

// wait stands in the server's queue for a slice at the most.
func (p *place) wait(st *stand, atGate, keepGate bool) (answer int, err error) {
	mode, until, ok := p.room.Desk.Need(st.key)
	if !ok { // it is about to be unwanted
		p.sleep(time.Millisecond)
		if atGate {
			return firstAtKey, nil
		}
		return notFirst, nil
	}
	slice := p.slice
	if !until.IsZero() {
		slice = max(min(slice, time.Until(until)), time.Millisecond)
	}
	p.room.mu.Lock()
	p.calling = !st.left
	p.room.mu.Unlock()
	defer func() { err = errors.Join(err, p.called()) }()
	ctx, cancel := context.WithTimeout(p.room.ctx, slice+p.room.cfg.TTL/4)
	defer cancel()
	result := p.session.PgConn().ExecPrepared(ctx, stmtWait, [][]byte{
		number(st.key.ID), boolean(st.key.Pair), boolean(mode == advisory.Shared), number(st.key.Gate()),
		boolean(atGate), boolean(keepGate), number(slice.Milliseconds()),
	}, nil, nil).Read()
	if result.Err != nil {
		return 0, fmt.Errorf("wait in the server's queue: %w", result.Err)
	}
	if len(result.Rows) != 1 || len(result.Rows[0]) != 1 {
		return 0, errors.New("wait in the server's queue: no answer")
	}
	return strconv.Atoi(string(result.Rows[0][0]))
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
	return nil
}

// dial opens the place's session.
func (p *place) dial() error {
	ctx := p.room.ctx
	s, err := p.room.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	if _, err := s.PgConn().Prepare(ctx, stmtWait, sqlWait, nil); err != nil {
		s.HangUp()
		return fmt.Errorf("prepare the wait: %w", err)
	}
	p.slice = session.WaitSlice(p.room.cfg.TTL, s.Server)
	p.session = s
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
