package lockmgr

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// TestDesk_Model takes random steps and compares after each what the manager has done with what it may do:
// exclusion among its own holders and other processes, rising tokens, order of arrival, and in the end
// nothing left anywhere.
func TestManager_Model(t *testing.T) {
	t.Parallel()
	for seed := range uint64(24) {
		t.Run(fmt.Sprintf("Seed%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := &model{
					world: newWorld(t, func(w *world, _ *Config) { w.maxAnchors, w.perAnchor = 1+int(seed%3), 2 }),
					rand:  rand.New(rand.NewPCG(seed, 1)), //nolint:gosec // reproducible on purpose
					keys:  map[advisory.Key]*keyModel{},
				}
				for i := range 4 {
					m.keys[advisory.Key{ID: int64(i), Pair: i == 3}] = &keyModel{turns: map[int]<-chan bool{}}
				}
				m.other, m.queue = m.server.newSession(), m.server.newSession()
				for range 3000 {
					m.step()
					m.check()
				}
				m.drain()
			})
		})
	}
}

type model struct {
	*world
	rand         *rand.Rand
	keys         map[advisory.Key]*keyModel
	other, queue int // sessions of another process, and of our lock queue
}

// keyModel is what the model knows of a key.
type keyModel struct {
	waiting []*attempt // in order of arrival
	holders []*attempt
	newest  [2]int64 // tokens of grants, by mode
	turns   map[int]<-chan bool
}

type attempt struct {
	*call
	mode advisory.Mode
	try  bool
	gone bool // its context has ended

	downgrade *call
}

func (m *model) pick() (advisory.Key, *keyModel) {
	k := advisory.Key{ID: m.rand.Int64N(4)}
	k.Pair = k.ID == 3
	return k, m.keys[k]
}

func (m *model) mode() advisory.Mode { return advisory.Mode(m.rand.IntN(2)) } //nolint:gosec // 0 or 1

func (m *model) step() {
	k, km := m.pick()
	switch n := m.rand.IntN(100); {
	case n < 30:
		if len(km.waiting) < 12 {
			a := &attempt{mode: m.mode(), try: m.rand.IntN(4) == 0}
			a.call = m.acquire(k, a.mode, a.try)
			km.waiting = append(km.waiting, a)
		}
	case n < 55:
		if len(km.holders) > 0 {
			i := m.rand.IntN(len(km.holders))
			h := km.holders[i]
			km.holders = slices.Delete(km.holders, i, i+1)
			m.release(h.hold)
		}
	case n < 62:
		if len(km.waiting) > 0 {
			a := km.waiting[m.rand.IntN(len(km.waiting))]
			a.gone = true
			a.cancel()
			synctest.Wait()
		}
	case n < 82:
		if len(m.anchors) > 0 {
			l := m.anchors[m.rand.IntN(len(m.anchors))]
			l.complete(l.take())
			synctest.Wait()
		}
	case n < 88:
		m.stranger(k, km)
	case n < 94:
		m.turn(k, km)
	case n < 95:
		if len(km.holders) > 0 {
			m.downgrade(km.holders[m.rand.IntN(len(km.holders))])
		}
	case n < 97:
		m.Sweep([]advisory.Key{k, {ID: 0}})
		synctest.Wait()
	case n < 98:
		time.Sleep(time.Duration(m.rand.IntN(1200)) * time.Millisecond)
	case m.rand.IntN(4) == 0:
		m.lose()
	}
}

// stranger is what another process does.
func (m *model) stranger(k advisory.Key, km *keyModel) {
	mode := m.mode()
	switch m.rand.IntN(4) {
	case 0, 1:
		if m.server.try(m.other, k, mode) {
			km.granted(m.t, mode, m.server.draw())
		}
	case 2:
		m.server.unlock(m.other, k, mode)
	case 3:
		if !m.server.unlock(m.other, gateOf(k), exclusive) {
			m.server.try(m.other, gateOf(k), exclusive)
		}
	}
}

func (m *model) downgrade(a *attempt) {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = a.hold.Downgrade(m.t.Context())
	}()
	synctest.Wait()
	a.downgrade = c
	if a.mode == shared {
		require.True(m.t, c.ended(), "nothing to do")
	}
}

// turn is what the lock queue does.
func (m *model) turn(k advisory.Key, km *keyModel) {
	if len(km.turns) > 0 || !m.queued[k] {
		return
	}
	mode, _, ok := m.Need(k)
	if ok && m.server.try(m.queue, gateOf(k), exclusive) {
		if m.server.free(m.queue, k, mode) {
			km.turns[0] = m.Turn(k)
			synctest.Wait()
		} else {
			m.server.unlock(m.queue, gateOf(k), exclusive)
		}
	}
}

// lose fails an anchor, with a round trip under way or not.
func (m *model) lose() {
	if len(m.anchors) == 0 {
		return
	}
	l := m.anchors[m.rand.IntN(len(m.anchors))]
	ops := l.take()
	m.server.run(m.t, l.session, ops)
	l.Fail(errCut)
	for _, km := range m.keys { // the keys are free: every holder must know by now
		km.holders = slices.DeleteFunc(km.holders, func(a *attempt) bool {
			require.Equal(m.t, a.hold.anchor == engine.Anchor(l), a.hold.Err() != nil)
			return a.hold.Err() != nil
		})
	}
	if m.rand.IntN(2) == 0 {
		m.Answer(ops)
	} else {
		m.Lost(l, errCut)
	}
	synctest.Wait()
}

// granted takes a grant's token, in the order of the grants.
func (km *keyModel) granted(t *testing.T, mode advisory.Mode, token int64) {
	t.Helper()
	require.Greater(t, token, km.newest[exclusive], "token goes back")
	if mode == exclusive {
		require.Greater(t, token, km.newest[shared], "token goes back")
	}
	km.newest[mode] = max(km.newest[mode], token)
}

// check looks at what the last step has done.
func (m *model) check() {
	for k, km := range m.keys {
		var left []*attempt
		for _, a := range km.waiting {
			switch {
			case !a.ended():
				left = append(left, a)
			case a.err != nil:
				require.True(m.t, a.gone || a.try, "%v", a.err)
				require.ErrorIs(m.t, a.err, lockerr.NotAcquired)
			default:
				require.Empty(m.t, left, "granted before one that came earlier")
				km.granted(m.t, a.mode, a.hold.Token())
				if a.hold.Err() == nil {
					km.holders = append(km.holders, a)
				}
			}
		}
		km.waiting = left
		for _, a := range km.holders {
			if c := a.downgrade; c != nil && c.ended() && a.hold.Err() == nil {
				require.NoError(m.t, c.err)
				require.True(m.t, a.hold.Shared())
				a.mode = shared
			}
		}
		m.exclusion(k, km)
		if ch := km.turns[0]; len(ch) > 0 {
			<-ch // if the turn was not taken the queue would go on at the gate; here it leaves
			delete(km.turns, 0)
			require.True(m.t, m.server.unlock(m.queue, gateOf(k), exclusive))
		}
	}
}

func (m *model) exclusion(k advisory.Key, km *keyModel) {
	if len(km.holders) == 0 {
		return
	}
	mode := km.holders[0].mode
	for _, a := range km.holders {
		require.NoError(m.t, a.hold.Err())
		require.Equal(m.t, mode, a.mode)
		session := a.hold.anchor.(*fakeAnchor).session
		require.Positive(m.t, m.server.held[slot{session, k, mode}], "the server does not know of it")
		require.True(m.t, m.server.free(session, k, mode), "another process has it too")
	}
	require.False(m.t, mode == exclusive && len(km.holders) > 1)
}

// drain ends everything and looks whether something is left.
func (m *model) drain() {
	m.server.drop(m.other)
	for k, km := range m.keys {
		for _, a := range km.waiting {
			if m.rand.IntN(2) == 0 {
				a.gone = true
				a.cancel()
			}
		}
		for range 100 {
			m.Sweep([]advisory.Key{k})
			m.rounds()
			m.check()
			for _, a := range km.holders {
				m.release(a.hold)
			}
			km.holders = nil
			m.rounds()
			m.turn(k, km)
			time.Sleep(10 * time.Millisecond)
		}
		m.check()
		require.Empty(m.t, km.waiting, "left hanging")
		require.Empty(m.t, km.turns)
	}
	m.empty()
}
