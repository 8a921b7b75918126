package semaphore

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	stateNames  = []string{"idle", "asking", "queued", "queuedAsking", "turn", "turnAsking"}
	eventNames  = []string{"wanted", "served", "short", "look", "turnBegan", "turnEnded", "headLeft"}
	actionNames = map[action]string{claimSlots: "claim", claimAhead: "claim ahead", sendHead: "send head"}
)

// cell is how the package's doc writes a transition.
func (t transition) cell(from state) string {
	switch {
	case t.do == never:
		return "never"
	case t.do == none && t.to == from:
		return "-"
	case t.do == none:
		return stateNames[t.to]
	}
	return stateNames[t.to] + ", " + actionNames[t.do]
}

// The table that people read is the one that runs.
func TestTransitions_AsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	table := map[string][]string{}
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(strings.TrimPrefix(line, "//"), "|")
		if len(cells) != int(events)+1 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		table[cells[0]] = cells[1:]
	}
	require.Len(t, stateNames, int(states))
	require.Len(t, table, int(states)+1)
	require.Equal(t, eventNames, table[""])
	for from, row := range transitions {
		for what, next := range row {
			require.Equal(t, table[stateNames[from]][what], next.cell(state(from)), "%s, %s", stateNames[from], eventNames[what])
		}
	}
}

// What the table says must fit what its states mean.
func TestTransitions_FitTheStates(t *testing.T) {
	t.Parallel()
	for from := range states {
		for what, next := range transitions[from] {
			name := stateNames[from] + ", " + eventNames[what]
			if next.do == never {
				require.Equal(t, from, next.to, name)
				continue
			}
			switch asks := next.to.asking(); next.do {
			case claimSlots, claimAhead:
				require.True(t, asks && !from.asking(), "%s: one claim at a time", name)
				require.Equal(t, next.do == claimAhead, from.hasHead(), name)
			default:
				require.True(t, !asks || from.asking(), "%s: only a claim makes it ask", name)
			}
			require.Equal(t, next.do == sendHead, next.to.hasHead() && !from.hasHead(), "%s: a head is sent", name)
			require.True(t, !from.hasHead() || next.to.hasHead() || event(what) == headLeft, "%s: only by leaving it goes", name)
			require.Equal(t, event(what) == turnBegan || from.atGate() && event(what) != turnEnded, next.to.atGate(), name)
		}
	}
}
