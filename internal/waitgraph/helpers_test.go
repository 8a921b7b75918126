package waitgraph

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// board is a [Board] in memory, for several detectors.
type board struct {
	mu     sync.Mutex
	last   int64
	rows   map[int64]Wait
	looks  map[int64]int64
	gone   map[int64]bool // holders
	writes int
	fail   error
}

func newBoard() *board {
	return &board{rows: map[int64]Wait{}, looks: map[int64]int64{}, gone: map[int64]bool{}}
}

// member is a detector's access to the board.
type member struct {
	*board

	holder int64
	fail   error         // guarded by the board's mutex, as holder and lost
	lost   bool          // answers are
	slow   time.Duration // what a publication takes
}

func (m *member) Holder(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holder, errors.Join(m.fail, m.board.fail)
}

func (m *member) Publish(ctx context.Context, holder int64, waits []Wait) ([]int64, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(m.slow):
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.board.fail != nil {
		return nil, m.board.fail
	}
	m.writes++
	var ids []int64
	for _, w := range waits {
		m.last++
		w.ID, w.Holder = m.last, holder
		m.rows[w.ID] = w
		ids = append(ids, w.ID)
	}
	if m.lost {
		return nil, errors.New("no answer")
	}
	return ids, m.fail
}

func (m *member) Withdraw(_ context.Context, holder int64, ids []int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.fail, m.board.fail); err != nil {
		return err
	}
	m.writes++
	for id, w := range m.rows {
		if w.Holder == holder && (ids == nil || slices.Contains(ids, id)) {
			delete(m.rows, id)
		}
	}
	return nil
}

func (m *member) Waits(_ context.Context, holder, look int64) ([]Wait, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.fail, m.board.fail); err != nil {
		return nil, err
	}
	m.looks[holder] = look
	if m.lost {
		return nil, errors.New("no answer")
	}
	var all []Wait
	for _, w := range m.rows {
		if !m.gone[w.Holder] {
			w.Looks = m.looks[w.Holder]
			all = append(all, w)
		}
	}
	return all, nil
}

// replace lets the session of the old holder be lost; the server knows of it at once, or does not know yet.
func (m *member) replace(holder int64, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone[m.holder] = known
	m.holder = holder
}

func (m *member) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *member) setLost(lost bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = lost
}

func (b *board) setFail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *board) count() (rows, writes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.rows), b.writes
}

// waiter is a wait of a test.
type waiter struct {
	mu      sync.Mutex
	timer   *time.Timer
	watched *Watched
	over    bool
	holds   []Lock
	err     error
	began   time.Time
	took    time.Duration
}

// wait begins a wait, which is watched when it has lasted.
func wait(d *Detector, key int64, holds ...int64) *waiter {
	w := &waiter{began: time.Now(), holds: want(0, key, holds...).Holds}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(After, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.over {
			w.watched = d.Watch(lockName(key), lock(key), w.held, w.end)
		}
	})
	return w
}

func (w *waiter) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err, w.took = err, time.Since(w.began)
		go w.Over()
	}
}

func (w *waiter) Over() {
	w.mu.Lock()
	w.timer.Stop()
	w.over = true
	watched := w.watched
	w.mu.Unlock()
	if watched != nil {
		watched.Over()
	}
}

func lockName(key int64) string { return string(rune('a' + max(key, -key) - 1)) }

func (w *waiter) held() []Lock {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holds
}

func (w *waiter) setHeld(keys ...int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holds = want(0, 1, keys...).Holds
}

func (w *waiter) ended() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func ignore(string, error) {}

// crew is two detectors of one process, or of two, with a board in common, or none.
func crew(t *testing.T, b *board, processes int) (first, second *Detector) {
	t.Helper()
	here, there := func() string { return t.Name() }, func() string { return t.Name() }
	if processes > 1 {
		there = func() string { return t.Name() + ", another process" }
	}
	if b == nil {
		first, second = New(nil, here, ignore), New(nil, there, ignore)
	} else {
		first, second = New(&member{board: b, holder: 1}, here, ignore), New(&member{board: b, holder: 2}, there, ignore)
	}
	t.Cleanup(func() {
		first.Close(context.Background())
		second.Close(context.Background())
		if b != nil {
			rows, _ := b.count()
			require.Zero(t, rows, "rows are left")
		}
	})
	return first, second
}

func (w *waiter) lasted() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.took
}

// one requires that exactly one of the waits was ended, and returns it.
func one(t *testing.T, waits ...*waiter) *waiter {
	t.Helper()
	var found *waiter
	for _, w := range waits {
		if w.ended() != nil {
			require.ErrorIs(t, w.ended(), lockerr.Deadlock)
			require.Nil(t, found, "a second victim")
			found = w
		}
	}
	require.NotNil(t, found, "no victim")
	return found
}

// settle ends what is left of the waits, and gives the detectors time to withdraw them.
func settle(waits ...*waiter) {
	for _, w := range waits {
		w.Over()
	}
	time.Sleep(10 * time.Second)
	synctest.Wait()
}

// busy reports whether the detector looks.
func (d *Detector) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looking
}
