package waitgraph

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func TestDetector_EndsTheYoungest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		board     *board
		processes int
	}{
		"OnTheBoard": {newBoard(), 2}, "OnTheBoardOfOneProcess": {newBoard(), 1}, "InTheProcess": {nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				first, second := crew(t, c.board, c.processes)
				bystander := wait(first, 1, 7)
				one := wait(first, 2, 1)
				time.Sleep(100 * time.Millisecond)
				two := wait(second, 3, 2)
				time.Sleep(100 * time.Millisecond)
				three := wait(first, 1, 3)
				time.Sleep(2 * time.Second)
				require.ErrorIs(t, three.ended(), lockerr.Deadlock)
				require.ErrorContains(t, three.ended(), "a, b, c")
				require.LessOrEqual(t, three.lasted(), 1700*time.Millisecond)
				require.GreaterOrEqual(t, three.lasted(), After+apart)
				time.Sleep(5 * time.Second)
				for _, other := range []*waiter{bystander, one, two} {
					require.NoError(t, other.ended())
				}
				settle(bystander, one, two)
				require.False(t, first.busy() || second.busy(), "somebody looks for nothing")
			})
		})
	}
}

func TestDetector_OneLookIsNotEnough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := crew(t, newBoard(), 2)
		x, y := wait(first, 2, 1), wait(second, 1, 2)
		time.Sleep(After + apart/2)
		synctest.Wait()
		x.setHeld() // it has released what it held
		time.Sleep(3 * time.Second)
		require.NoError(t, errors.Join(x.ended(), y.ended()))
		x.setHeld(1)
		time.Sleep(time.Second)
		one(t, x, y)
		settle(x, y)
	})
}

func TestDetector_ShortWaitsCostNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b, 2)
		for range 100 {
			x, y := wait(first, 2, 1), wait(second, 1, 2)
			time.Sleep(After - time.Millisecond)
			x.Over()
			y.Over()
		}
		time.Sleep(time.Second)
		_, writes := b.count()
		require.Zero(t, writes)
	})
}

// What nobody confirms does not count: of a process that died, is frozen, or cut off from the board.
func TestDetector_OnlyThoseWhoLookCount(t *testing.T) {
	t.Parallel()
	for _, dead := range []bool{true, false} {
		t.Run(fmt.Sprint("dead ", dead), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				first, _ := crew(t, b, 1)
				other := &member{board: b, holder: 99}
				_, err := other.Publish(t.Context(), 99, []Wait{want(0, 1, 2)})
				require.NoError(t, err)
				_, err = other.Waits(t.Context(), 99, 7)
				require.NoError(t, err)
				b.mu.Lock()
				b.gone[99] = dead
				b.mu.Unlock()
				x := wait(first, 2, 1)
				time.Sleep(5 * time.Second)
				_, err = other.Waits(t.Context(), 99, 8) // what it says now, it may have found out before
				require.NoError(t, err)
				time.Sleep(5 * time.Second)
				require.NoError(t, x.ended())
				if !dead {
					_, err = other.Waits(t.Context(), 99, 9)
					require.NoError(t, err)
					time.Sleep(time.Second)
					require.ErrorIs(t, x.ended(), lockerr.Deadlock)
				}
				require.NoError(t, other.Withdraw(t.Context(), 99, nil))
				settle(x)
			})
		})
	}
}

func TestDetector_BoardComesAndGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b, 1)
		x := wait(first, 2, 1)
		time.Sleep(2 * After)
		b.setFail(errors.New("away"))
		y := wait(second, 1, 2)
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, y.ended(), lockerr.Deadlock, "in the process it is seen all the same")
		b.setFail(nil)
		first.board.(*member).replace(11, true)
		time.Sleep(time.Second)
		z := wait(second, 1, 2)
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, z.ended(), lockerr.Deadlock, "with a new session it is published anew")
		require.NoError(t, x.ended())
		settle(x)
	})
}

// Between processes, too; and the server may know late that the old session is gone.
func TestDetector_NewSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b, 2)
		x := wait(first, 2, 1)
		time.Sleep(2 * After)
		first.board.(*member).replace(11, false)
		time.Sleep(time.Second)
		rows, _ := b.count()
		require.Equal(t, 1, rows, "what the old session has published is withdrawn by the new one")
		y := wait(second, 1, 2)
		time.Sleep(2 * time.Second)
		require.Equal(t, y, one(t, x, y))
		settle(x, y)
	})
}

// The row of a wait that is over is withdrawn when the board is back, however late that is.
func TestDetector_WithdrawsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b, 2)
		x := wait(first, 2, 1)
		time.Sleep(2 * After)
		away := first.board.(*member)
		away.setFail(errors.New("away"))
		x.Over()
		time.Sleep(time.Minute)
		rows, _ := b.count()
		require.Equal(t, 1, rows)
		y := wait(second, 1, 2)
		time.Sleep(time.Minute)
		require.NoError(t, y.ended(), "nobody waits for what it holds")
		away.setFail(nil)
		time.Sleep(longest + time.Second)
		rows, _ = b.count()
		require.Equal(t, 1, rows, "the other one's")
		settle(y)
		require.False(t, first.busy())
	})
}

// A publication whose answer is lost leaves rows that nobody knows; they are found and withdrawn.
func TestDetector_AnswerLost(t *testing.T) {
	t.Parallel()
	for _, over := range []bool{true, false} {
		t.Run(fmt.Sprint("over ", over), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				first, second := crew(t, b, 2)
				away := first.board.(*member)
				idle := wait(first, 7, 8)
				x := wait(first, 2, 1)
				time.AfterFunc(After, func() { away.setLost(true) })
				time.Sleep(After + 10*time.Millisecond)
				away.setLost(false)
				rows, _ := b.count()
				require.NotZero(t, rows)
				if over {
					settle(idle, x)
					rows, _ = b.count()
					require.Zero(t, rows)
					return
				}
				y := wait(second, 1, 2)
				time.Sleep(2 * time.Second)
				require.Equal(t, y, one(t, idle, x, y))
				rows, _ = b.count()
				require.Equal(t, 2, rows)
				settle(idle, x, y)
			})
		})
	}
}

// While there are no answers, the numbers of the looks say nothing new to others.
func TestDetector_LookWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, _ := crew(t, b, 1)
		looks := func() int64 {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.looks[1]
		}
		x := wait(first, 2, 1)
		time.Sleep(After + 10*every - 10*time.Millisecond)
		require.Equal(t, int64(10), looks())
		first.board.(*member).setLost(true)
		time.Sleep(2 * time.Second)
		require.Equal(t, int64(11), looks())
		first.board.(*member).setLost(false)
		time.Sleep(every)
		require.Equal(t, int64(11), looks())
		settle(x)
	})
}

// What is on the board of a wait of this process that is over stands in nobody's way.
func TestDetector_OverInTheProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, second := crew(t, b, 1)
		x := wait(first, 2, 1)
		time.Sleep(2 * After)
		first.board.(*member).setFail(errors.New("away"))
		x.Over()
		y := wait(second, 1, 2)
		time.Sleep(10 * time.Millisecond)
		z := wait(second, 2, 1)
		time.Sleep(2 * time.Second)
		require.Equal(t, z, one(t, x, y, z))
		first.board.(*member).setFail(nil)
		settle(x, y, z)
	})
}

// Nor does what a row of this process says to be held, and no longer is.
func TestDetector_NotHeldInTheProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := crew(t, newBoard(), 1)
		x := wait(first, 2, 1)
		time.Sleep(2 * After)
		first.board.(*member).setFail(errors.New("away"))
		x.setHeld()
		y := wait(second, 1, 2)
		time.Sleep(3 * time.Second)
		require.NoError(t, errors.Join(x.ended(), y.ended()))
		first.board.(*member).setFail(nil)
		settle(x, y)
	})
}

func TestDetector_AnotherDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here := New(nil, func() string { return t.Name() }, ignore)
		there := New(nil, func() string { return t.Name() + "?" }, ignore)
		x, y := wait(here, 2, 1), wait(there, 1, 2)
		time.Sleep(5 * time.Second)
		require.NoError(t, errors.Join(x.ended(), y.ended()))
		settle(x, y)
		here.Close(t.Context())
		there.Close(t.Context())
	})
}

// A wait to share what is shared is taken for one that stands behind an exclusive lock when it has lasted for longer.
func TestDetector_OneselfAndShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := crew(t, newBoard(), 2)
		self := wait(first, 1, 1)
		time.Sleep(2 * time.Second)
		require.ErrorContains(t, self.ended(), "holds it")
		x, y := wait(first, -2, -1), wait(second, -1, -2)
		time.Sleep(After + apartShared - 10*time.Millisecond)
		require.NoError(t, errors.Join(x.ended(), y.ended()))
		time.Sleep(time.Second)
		require.LessOrEqual(t, one(t, x, y).lasted(), 1900*time.Millisecond)
		settle(self, x, y)
	})
}

// Two clients of one process, one of which has no board, or cannot reach it for the time being.
func TestDetector_MixedBoards(t *testing.T) {
	t.Parallel()
	for _, small := range []int{0, 1, 2} { // which of the waits is of the client without; 2 is none
		for _, away := range []int{0, 1, 2} {
			t.Run(fmt.Sprint(small, away), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					here := func() string { return t.Name() }
					b := newBoard()
					var crew []*Detector
					for i := range 2 {
						if i == small {
							crew = append(crew, New(nil, here, ignore))
							continue
						}
						crew = append(crew, New(&member{board: b, holder: int64(i + 1)}, here, ignore))
					}
					busy := wait(crew[0], 7, 8) // keeps it looking, so that its next publication comes late
					time.Sleep(After + every/2)
					x := wait(crew[0], 2, 1)
					time.Sleep(5 * time.Millisecond)
					y := wait(crew[1], 1, 2)
					time.Sleep(After + 10*time.Millisecond)
					if away < 2 && away != small {
						crew[away].board.(*member).setFail(errors.New("away"))
					}
					time.Sleep(5 * time.Second)
					require.LessOrEqual(t, one(t, busy, x, y).lasted(), 2*time.Second)
					if away < 2 && away != small {
						crew[away].board.(*member).setFail(nil)
					}
					settle(busy, x, y)
					for _, d := range crew {
						d.Close(t.Context())
					}
				})
			})
		}
	}
}

// A board that is not quick, and more waits than it takes in the time that a look waits for an answer.
func TestDetector_ManyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const crowd = 5*chunk + 1
		b := newBoard()
		first, second := crew(t, b, 2)
		first.board.(*member).slow = patience - time.Millisecond
		var waits []*waiter
		for range crowd {
			waits = append(waits, wait(first, 20, 21)) // in the context of one lock, behind a key that is held elsewhere
		}
		time.Sleep(10 * time.Second)
		rows, writes := b.count()
		require.Equal(t, crowd, rows)
		require.LessOrEqual(t, writes, 7)
		x, y := wait(first, 2, 1), wait(second, 1, 2)
		time.Sleep(10 * time.Second)
		one(t, append(waits, x, y)...)
		_, more := b.count()
		require.LessOrEqual(t, more, writes+3)
		settle(append(waits, x, y)...)
	})
}

func TestDetector_CloseWithdraws(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first, _ := crew(t, b, 2)
		x := wait(first, 2, 1)
		time.Sleep(2 * After)
		first.Close(context.Background())
		rows, _ := b.count()
		require.Zero(t, rows)
		x.Over()
		_, here := processes.behind(t.Name(), Wait{ID: 1, Holder: 1})
		require.False(t, here, "it is forgotten")
	})
}
