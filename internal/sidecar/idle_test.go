package sidecar

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lender works with the session whenever it likes, unless it can do without.
type lender struct {
	needs atomic.Bool
	has   atomic.Pointer[Session]
}

func (l *lender) Opened(s *Session)        { l.has.Store(s) }
func (l *lender) Failed(error)             {}
func (l *lender) Lost(s *Session, _ error) { l.has.CompareAndSwap(s, nil) }

func (l *lender) LetGo(s *Session) bool { return !l.needs.Load() && l.has.CompareAndSwap(s, nil) }

// A session that nobody uses or needs is closed, and the next one is opened when somebody asks.
func TestSidecar_Idle(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.cfg.Idle = 20 * time.Millisecond
	l := &lender{}
	l.needs.Store(true)
	f.Observe(l)
	var busy atomic.Bool
	busy.Store(true)
	f.StayOpenWhile(busy.Load)

	_, err := f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	open := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.open
	}
	stays := func(why string) {
		time.Sleep(10 * f.cfg.Idle)
		require.Equal(t, 1, open(), why)
		require.NotNil(t, l.has.Load(), why)
	}
	stays("somebody listens")
	busy.Store(false)
	stays("somebody works with it")
	l.needs.Store(false)
	f.within(t, func() bool { return f.open == 0 })
	require.Nil(t, l.has.Load())
	time.Sleep(10 * f.cfg.Idle)
	require.Zero(t, open(), "nobody asks")
	opened, lost := f.count()
	require.Equal(t, []int{1, 0}, []int{opened, lost}, "to be closed for want of use is no loss")

	l.needs.Store(true)
	_, err = f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	require.NotNil(t, l.has.Load())
	require.Equal(t, 1, open())
}

// Whoever asks while the session is being closed gets an answer.
func TestSidecar_IdleAndAsked(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.cfg.Idle = time.Millisecond
	for range 20 {
		_, err := f.Query(t.Context(), &stmtPid)
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
	}
}
