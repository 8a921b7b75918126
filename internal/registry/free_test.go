package registry

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// counter is a session whose table has one request, until it is answered.
type counter struct {
	mu      sync.Mutex
	open    bool
	answers []string
	cuts    int // how many answers are lost before one arrives
}

func (c *counter) Known() int64 { return 1 }

func (c *counter) Query(_ context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if statement == &stmtLook {
		if !c.open || string(params[0]) == "{}" {
			return nil, nil
		}
		return [][][]byte{{
			pgtext.Int(7), pgtext.Int(1), []byte("lock"), []byte("k"), pgtext.Int(42), []byte("f"), pgtext.Int(0), []byte("why"),
		}}, nil
	}
	if c.cuts > 0 {
		c.cuts--
		return nil, errCut
	}
	c.open = false
	c.answers = append(c.answers, string(params[1]))
	return nil, nil
}

// What was freed is freed once, and recorded in the end, whatever answers are lost.
func TestAnswerer_AnswersInTheEnd(t *testing.T) {
	t.Parallel()
	table := &counter{open: true, cuts: 3}
	var mu sync.Mutex
	freed := 0
	answered := make(chan struct{})
	var once sync.Once
	a := NewAnswerer(AnswererConfig{
		Session: table, Holders: func() []int64 {
			table.mu.Lock()
			defer table.mu.Unlock()
			if len(table.answers) > 0 {
				once.Do(func() { close(answered) })
			}
			return []int64{1}
		},
		Room: func() bool { return true },
		Free: func(r Request) bool {
			mu.Lock()
			defer mu.Unlock()
			freed++
			return freed == 1 && r.ID == 7
		},
		Report: func(string, error) {},
	})
	defer a.Close()
	a.Notified(FreePrefix + "1")
	for {
		select {
		case <-answered:
			require.Equal(t, []string{"true"}, table.answers)
			require.Equal(t, 1, freed)
			return
		default:
			a.Look()
		}
	}
}

// Too many notifications to be kept are a reason to look at everything, and not to look away.
func TestAnswerer_Flood(t *testing.T) {
	t.Parallel()
	table := &counter{open: true}
	freed := make(chan struct{}, 1)
	a := &Answerer{
		cfg: AnswererConfig{
			Session: table, Holders: func() []int64 { return []int64{1} }, Room: func() bool { return false },
			Free: func(Request) bool { freed <- struct{}{}; return true }, Report: func(string, error) {},
		},
		named: map[int64]bool{}, answers: map[int64]bool{}, asked: make(chan struct{}, 1), ctx: t.Context(),
	}
	for id := range mostNamed {
		a.Notified(FreePrefix + string(pgtext.Int(int64(1000+id))))
	}
	a.Notified(FreePrefix + "1")
	require.NoError(t, a.answer())
	require.Len(t, freed, 1)
}
