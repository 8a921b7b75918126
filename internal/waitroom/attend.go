package waitroom

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

const (
	stmtSeveral = "pgbaton_wait_several"
	sqlSeveral  = "SELECT gates_held, keys_held FROM pgbaton.wait_for_turns($1, $2, $3, $4, $5, $6)"
)

const (
	// signOfLife is how often the session of a turn says that the process lives.
	signOfLife = 250 * time.Millisecond
	// gatherFor is how long a post keeps its session from other stands, with what it has gathered, at first.
	// It is twice as long each time that it had to give way: no key that is released sooner or later keeps it
	// waiting for ever.
	gatherFor   = 2 * time.Second
	mostDoubles = 3 // 16 s: else stands of single keys would wait for minutes
)

// attend waits for a post's turns. Before it leaves, it gives back all that the session holds.
func (p *place) attend(st *stand) (err error) {
	post := st.post
	gates, keys, began, pause := 0, 0, time.Now(), firstTry
	defer func() {
		p.setPlaced(post, false)
		p.note(post, 0, false)
		if gates > 0 && err == nil {
			err = p.free()
		}
	}()
	if err := p.prepareSeveral(post); err != nil {
		return err
	}
	p.setPlaced(post, true)
	for {
		if p.leaves(st, began) {
			return nil
		}
		if gates, keys, err = p.gather(st, gates, keys); err != nil {
			return err
		}
		if gates == post.all && keys == post.keys {
			again, err := p.turn(st, began)
			if err != nil || !again {
				return err
			}
			keys, pause = 0, firstTry
		} else if p.slice == 0 {
			p.sleep(pause)
			pause = min(2*pause, lastTry)
		}
	}
}

// leaves reports whether the place should leave a post: it is unwanted, or others need the place and the post has
// had it for long enough.
func (p *place) leaves(st *stand, began time.Time) bool {
	crowded := p.room.cfg.Budget.Crowded()
	r := p.room
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case st.left || r.ctx.Err() != nil || crowded:
		return true
	case len(r.line) == 0:
		return false
	}
	patience := max(p.slice, lastTry)
	if st.post.keys > 0 {
		patience = gatherFor << min(st.post.rounds, mostDoubles)
	}
	if time.Since(began) < patience {
		return false
	}
	st.post.rounds++
	return true
}

// gather waits for the next gates and keys, for a slice at the most, and returns how many of each are held. When
// they are all, the keys have been given back.
func (p *place) gather(st *stand, gates, keys int) (gatesHeld, keysHeld int, err error) {
	post := st.post
	row, err := p.call(st, p.slice, stmtSeveral, [][]byte{
		post.gates, post.numbers, post.pairs, number(int64(gates)), number(int64(keys)), number(p.slice.Milliseconds()),
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
	if got == post.keys { // they were given back
		got = 0
	}
	p.note(post, got, keysHeld < post.keys)
	return gatesHeld, keysHeld, nil
}

func (p *place) setPlaced(post *Post, placed bool) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	post.placed = placed
}

// note takes note of how far a post has come.
func (p *place) note(post *Post, got int, known bool) {
	p.room.mu.Lock()
	moved := post.got != got || post.known != known
	post.got, post.known = got, known
	p.room.mu.Unlock()
	if moved {
		chans.Signal(post.moved)
	}
}

// turn is a post's turn, until its owner has used it, it has lasted too long, or the place must leave. It returns true
// if the keys shall be waited for again.
func (p *place) turn(st *stand, began time.Time) (again bool, err error) {
	post, r := st.post, p.room
	r.mu.Lock()
	post.turn, post.over, post.busy = true, false, post.keys > 0
	r.mu.Unlock()
	chans.Signal(post.ready)
	defer func() {
		r.mu.Lock()
		post.turn = false
		r.mu.Unlock()
	}()
	sign := time.NewTicker(signOfLife)
	defer sign.Stop()
	var limit <-chan time.Time
	if post.keys > 0 {
		limit = time.After(p.turnLimit())
	}
	for {
		r.mu.Lock()
		over, left := post.over, st.left
		r.mu.Unlock()
		switch {
		case left:
			return false, nil
		case over:
			return post.keys > 0, nil
		case post.keys == 0 && p.leaves(st, began):
			return false, nil
		}
		select {
		case <-post.nudge:
		case <-limit:
			return false, nil
		case <-r.ctx.Done():
			return false, nil
		case <-sign.C:
			if err := p.live(st); err != nil {
				return false, err
			}
		}
	}
}

// live is a sign of life, and hears of the session's death.
func (p *place) live(st *stand) error {
	_, err := p.call(st, 0, stmtSeveral, [][]byte{[]byte("{}"), []byte("{}"), []byte("{}"), number(0), number(0), number(0)})
	return err
}

// prepareSeveral prepares the statement for posts. A schema without its function is told to the post's owner.
func (p *place) prepareSeveral(post *Post) error {
	if p.several {
		return nil
	}
	ctx, cancel := context.WithTimeout(p.room.ctx, p.room.cfg.TTL/4)
	defer cancel()
	_, err := p.session.PgConn().Prepare(ctx, stmtSeveral, sqlSeveral, nil)
	if pgerr.Class(err) == pgerr.SyntaxOrAccess {
		err = fmt.Errorf("%w: function pgbaton.wait_for_turns cannot be used: run the migrations: %w", lockerr.Schema, err)
		post.fail(err)
	}
	if err != nil {
		return fmt.Errorf("prepare the wait: %w", err)
	}
	p.several = true
	return nil
}

// fail ends a post whose owner cannot be helped.
func (p *Post) fail(err error) {
	p.room.mu.Lock()
	p.err = err
	p.room.mu.Unlock()
	chans.Signal(p.ready)
}
