package deadlock

import (
	"context"
	"errors"
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
	rows   map[int64]Published
	since  map[int64]time.Time
	gone   map[int64]bool // holders
	writes int
	fail   error
}

func newBoard() *board {
	return &board{rows: map[int64]Published{}, since: map[int64]time.Time{}, gone: map[int64]bool{}}
}

// seat is a detector's place at the board.
type seat struct {
	*board

	holder int64
}

func (s *seat) Holder(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holder, s.fail
}

func (s *seat) Publish(_ context.Context, holder int64, w Wait) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.writes++
		s.last++
		w.ID = s.last
		s.rows[w.ID] = Published{w, holder}
		s.since[w.ID] = time.Now()
	}
	return s.last, s.fail
}

func (s *seat) Withdraw(_ context.Context, holder int64, ids []int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.writes++
	for id, row := range s.rows {
		if row.Holder == holder && ids == nil {
			delete(s.rows, id)
		}
	}
	for _, id := range ids {
		delete(s.rows, id)
	}
	return nil
}

func (s *seat) Waits(context.Context) ([]Published, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Published
	for _, row := range s.rows {
		if !s.gone[row.Holder] {
			row.Long = time.Since(s.since[row.ID]) >= LongAfter
			all = append(all, row)
		}
	}
	return all, s.fail
}

func (s *seat) replace(holder int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone[s.holder] = true
	s.holder = holder
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

// waiter is a watched wait of a test.
type waiter struct {
	*Watched

	mu    sync.Mutex
	holds []Lock
	err   error
	began time.Time
	took  time.Duration
}

func wait(d *Detector, key int64, holds ...int64) *waiter {
	w := &waiter{began: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holds = want(0, key, holds...).Holds
	w.Watched = d.Watch(func() string { return lockName(key) }, lock(key), w.held, func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err == nil {
			w.err, w.took = err, time.Since(w.began)
			go w.Over()
		}
	})
	return w
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

// crew is two detectors with a board in common, or none.
func crew(t *testing.T, b *board) (first, second *Detector) {
	t.Helper()
	here := func() string { return t.Name() }
	if b == nil {
		first, second = New(nil, here, ignore), New(nil, here, ignore)
	} else {
		first, second = New(&seat{b, 1}, here, ignore), New(&seat{b, 2}, here, ignore)
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

func TestDetector_EndsTheYoungest(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]*board{"OnTheBoard": newBoard(), "InTheProcess": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				first, second := crew(t, b)
				bystander := wait(first, 1, 7)
				one := wait(first, 2, 1)
				time.Sleep(100 * time.Millisecond)
				two := wait(second, 3, 2)
				time.Sleep(100 * time.Millisecond)
				three := wait(first, 1, 3)
				time.Sleep(2 * time.Second)
				require.ErrorIs(t, three.ended(), lockerr.Deadlock)
				require.ErrorContains(t, three.ended(), "a, b, c")
				require.LessOrEqual(t, three.took, 1700*time.Millisecond)
				require.GreaterOrEqual(t, three.took, after+apart)
				time.Sleep(5 * time.Second)
				for _, other := range []*waiter{bystander, one, two} {
					require.NoError(t, other.ended())
					other.Over()
				}
				time.Sleep(time.Second)
				synctest.Wait()
				require.False(t, first.looking || second.looking, "somebody looks for nothing")
			})
		})
	}
}

func TestDetector_OneLookIsNotEnough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b)
		one, two := wait(first, 2, 1), wait(second, 1, 2)
		time.Sleep(after + apart/2)
		synctest.Wait()
		one.setHeld() // it has released what it held
		time.Sleep(3 * time.Second)
		require.NoError(t, one.ended())
		require.NoError(t, two.ended())
		one.setHeld(1)
		time.Sleep(time.Second)
		require.True(t, one.ended() != nil || two.ended() != nil)
		require.False(t, one.ended() != nil && two.ended() != nil)
		one.Over()
		two.Over()
		time.Sleep(time.Second)
	})
}

func TestDetector_ShortWaitsCostNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b)
		for range 100 {
			one, two := wait(first, 2, 1), wait(second, 1, 2)
			time.Sleep(after - time.Millisecond)
			one.Over()
			two.Over()
		}
		time.Sleep(time.Second)
		_, writes := b.count()
		require.Zero(t, writes)
	})
}

func TestDetector_TheDeadDoNotCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, _ := crew(t, b)
		dead := &seat{b, 99}
		_, err := dead.Publish(t.Context(), 99, want(0, 1, 2))
		require.NoError(t, err)
		b.gone[99] = true
		one := wait(first, 2, 1)
		time.Sleep(5 * time.Second)
		require.NoError(t, one.ended())
		one.Over()
		require.NoError(t, dead.Withdraw(t.Context(), 99, nil))
		time.Sleep(time.Second)
	})
}

func TestDetector_BoardComesAndGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b)
		one := wait(first, 2, 1)
		time.Sleep(2 * after)
		b.setFail(errors.New("away"))
		two := wait(second, 1, 2)
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, two.ended(), lockerr.Deadlock, "in the process it is seen all the same")
		b.setFail(nil)
		first.board.(*seat).replace(11)
		time.Sleep(time.Second)
		three := wait(second, 1, 2)
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, three.ended(), lockerr.Deadlock, "with a new session it is published anew")
		require.NoError(t, one.ended())
		one.Over()
		time.Sleep(time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		for id, row := range b.rows {
			require.Equal(t, int64(1), row.Holder, "of a session that is gone")
			delete(b.rows, id)
		}
	})
}

func TestDetector_AnotherDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here := New(nil, func() string { return t.Name() }, ignore)
		there := New(nil, func() string { return t.Name() + "?" }, ignore)
		one, two := wait(here, 2, 1), wait(there, 1, 2)
		time.Sleep(5 * time.Second)
		require.NoError(t, one.ended())
		require.NoError(t, two.ended())
		here.Close(t.Context())
		there.Close(t.Context())
		one.Over()
		two.Over()
	})
}

func TestDetector_OneselfAndLongWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := crew(t, newBoard())
		self := wait(first, 1, 1)
		time.Sleep(2 * time.Second)
		require.ErrorContains(t, self.ended(), "holds it")
		one, two := wait(first, -2, -1), wait(second, -1, -2)
		time.Sleep(after + LongAfter - 10*time.Millisecond)
		require.NoError(t, errors.Join(one.ended(), two.ended()))
		time.Sleep(time.Second)
		require.Error(t, errors.Join(one.ended(), two.ended()))
		one.Over()
		two.Over()
		time.Sleep(time.Second)
	})
}
