package lockmgr

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

var (
	stateNames  = []string{"idle", "asking", "held", "checking", "drawing", "releasing"}
	eventNames  = []string{"wanted", "granted", "denied", "overdue", "tokensOut", "unwanted", "answered", "freed", "anchorLost"}
	actionNames = map[action]string{
		acquire: "acquire", count: "count", yield: "yield", draw: "draw", release: "release", drop: "drop",
	}
	queueStateNames  = []string{"unqueued", "inQueue", "atTurn"}
	queueEventNames  = []string{"taken", "turnCame", "turnMissed", "needless"}
	queueActionNames = map[queueAction]string{
		join: "join", listen: "listen", deny: "deny", leave: "leave", settle: "settle", answer: "answer",
	}
)

// cell is how the package's doc writes a transition. An action has a name unless it is none.
func cell(from, to, action string) string {
	switch {
	case action == "never":
		return "never"
	case action == "" && to == from:
		return "-"
	case action == "":
		return to
	}
	return to + ", " + action
}

// documented returns the table of the package's doc whose columns have names, by row.
func documented(t *testing.T, columns []string) map[string][]string {
	t.Helper()
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	var table map[string][]string
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(strings.TrimPrefix(line, "//"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case len(cells) == 1:
			if len(table) > 0 {
				return table
			}
		case strings.Join(cells[1:], " ") == strings.Join(columns, " "):
			table = map[string][]string{}
		case table != nil:
			table[cells[0]] = cells[1:]
		}
	}
	require.NotNil(t, table, "there is no such table")
	return table
}

// The tables that people read are those that run.
func TestTransitions_AsDocumented(t *testing.T) {
	t.Parallel()
	require.Len(t, stateNames, int(states))
	require.Len(t, eventNames, int(events))
	table := documented(t, eventNames)
	require.Len(t, table, int(states))
	for from, row := range transitions {
		for what, next := range row {
			name := actionNames[next.do]
			if next.do == never {
				name = "never"
			}
			require.Equal(t, table[stateNames[from]][what], cell(stateNames[from], stateNames[next.to], name),
				"%s, %s", stateNames[from], eventNames[what])
		}
	}
}

func TestQueueTransitions_AsDocumented(t *testing.T) {
	t.Parallel()
	require.Len(t, queueStateNames, int(queueStates))
	require.Len(t, queueEventNames, int(queueEvents))
	table := documented(t, queueEventNames)
	require.Len(t, table, int(queueStates))
	for from, row := range queueTransitions {
		for what, next := range row {
			require.Equal(t, table[queueStateNames[from]][what],
				cell(queueStateNames[from], queueStateNames[next.to], queueActionNames[next.do]),
				"%s, %s", queueStateNames[from], queueEventNames[what])
		}
	}
}

// What the table says must fit what its states mean.
func TestTransitions_FitTheStates(t *testing.T) {
	t.Parallel()
	busy := func(s state) bool { return s != idle && s != held }
	for from := range states {
		for what, next := range transitions[from] {
			name := stateNames[from] + ", " + eventNames[what]
			if next.do == never {
				require.Equal(t, from, next.to, name)
				continue
			}
			require.Equal(t, verbs[next.do] != 0 || next.do == acquire, busy(next.to), "%s: only a request awaits an answer", name)
			require.False(t, busy(from) && busy(next.to), "%s: one request at a time", name)
			require.Equal(t, from != idle && next.to == idle, next.do == drop, "%s: an idle key has no anchor", name)
			require.Equal(t, next.do == count, !from.counts() && next.to.counts(), "%s: what is held is counted", name)
		}
		require.Equal(t, from != idle, transitions[from][anchorLost].do == drop, "an anchor may be lost at any time: %s", stateNames[from])
	}
}

func TestQueueTransitions_FitTheStates(t *testing.T) {
	t.Parallel()
	for from := range queueStates {
		for what, next := range queueTransitions[from] {
			name := queueStateNames[from] + ", " + queueEventNames[what]
			require.Equal(t, from == unqueued && next.to != unqueued, next.do == join, name)
			require.Equal(t, from != unqueued && next.to == unqueued, next.do == leave || next.do == settle, name)
			require.Equal(t, from == atTurn && next.to != atTurn, next.do == deny || next.do == settle, "%s: a turn is answered once", name)
			require.Equal(t, queueEvent(what) == turnCame, next.do == listen || next.do == answer, "%s: a channel comes with a turn alone", name)
		}
	}
}

// After an event that cannot come, here an answer that comes twice, nothing at the anchor is trusted, and the service goes on.
func TestManager_EventThatCannotCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reports []error
		w := newWorld(t, func(_ *world, cfg *Config) {
			cfg.Report = func(_ string, err error) { reports = append(reports, err) }
		})
		h, other := w.held(key, shared), w.held(key2, exclusive)
		next, joiner := w.acquire(key2, exclusive, false), w.acquire(key, exclusive, false)
		w.Answer([]*engine.Request{w.keys[key].request})
		synctest.Wait()
		require.Len(t, reports, 1)
		require.EqualError(t, reports[0], "the key {1 false} met event 1 in state 2")
		for _, h := range []*Hold{h, other} {
			require.ErrorIs(t, h.Reason(), lockerr.Lost)
			require.ErrorIs(t, h.Reason(), reports[0])
			var loss *lockerr.LossError
			require.ErrorAs(t, h.Reason(), &loss)
			require.Equal(t, lockerr.Defect, loss.Reason)
			require.ErrorIs(t, w.release(h).err, lockerr.Lost)
		}
		require.Zero(t, w.server.heldBy(1))
		w.rounds()
		w.release(w.granted(next))
		w.release(w.granted(joiner))

		e := &keyState{key: key} // that no anchor holds
		a := w.step()
		w.happens(e, freed, a)
		require.Equal(t, idle, e.state)
		w.run(a, nil)
		require.Len(t, reports, 2)
		w.empty()
	})
}
