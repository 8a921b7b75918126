package grant

import (
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEnd(t *testing.T) {
	t.Parallel()
	var e End
	before := e.Done()
	var told []error
	e.OnEnd(func(err error) {
		told = append(told, err)
		for _, done := range []<-chan struct{}{before, e.Done()} {
			select {
			case <-done:
				require.Fail(t, "it is closed before all were told")
			default:
			}
		}
	})
	require.NoError(t, e.Reason())

	first, second := errors.New("first"), errors.New("second")
	require.True(t, e.Finish(first))
	require.False(t, e.Finish(second))
	<-before
	<-e.Done()
	e.OnEnd(func(err error) { told = append(told, err) })
	require.Equal(t, []error{first, first}, told)
	require.Equal(t, first, e.Reason())
}

func TestEnd_OneOfMany(t *testing.T) {
	t.Parallel()
	var e End
	var wg sync.WaitGroup
	firsts := make(chan bool, 100)
	for range cap(firsts) {
		wg.Go(func() {
			if e.Finish(errors.New("over")) {
				firsts <- true
			}
			<-e.Done()
		})
	}
	wg.Wait()
	require.Len(t, firsts, 1)
}
