package storm

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// hold is a grant as a process writes it down; what comes after the grant is the caller's.
func hold(op int64, key, mode string, n int, token, got int64, end ...history.Event) []history.Event {
	events := []history.Event{
		{At: got - 1, Kind: history.Call, Op: op, Key: key, Mode: mode, N: n},
		{At: got, Kind: history.Granted, Op: op, Token: token},
	}
	for _, e := range end {
		e.Op = op
		events = append(events, e)
	}
	return events
}

func released(at int64) []history.Event {
	return []history.Event{{At: at, Kind: history.Release}, {At: at + 1, Kind: history.Released}}
}

func lost(at int64) []history.Event {
	return []history.Event{{At: at, Kind: history.Lost}, {At: at + 1, Kind: history.Release}, {At: at + 2, Kind: history.Failed}}
}

func records(processes ...[][]history.Event) (list []record) {
	for i, process := range processes {
		r := record{process: i}
		for _, events := range process {
			r.events = append(r.events, events...)
		}
		list = append(list, r)
	}
	return list
}

const x, s = history.Exclusive, history.Shared

func TestJudge(t *testing.T) {
	ms := int64(time.Millisecond)
	stood := []history.Event{{At: 30, Kind: history.Stood, From: 15}}
	ran := func(from, at int64) []history.Event {
		return []history.Event{{At: at * ms, Kind: history.Ran, From: from * ms, Key: "o"}}
	}
	for name, c := range map[string]struct {
		records  []record
		violated string // "" for none
		overlaps []Overlap
	}{
		"one after the other": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 1, 10, released(20)...)}, [][]history.Event{hold(1, "k", x, 0, 2, 20, released(30)...)},
		)},
		"two at once, both told that all was well": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 1, 10, released(21)...)}, [][]history.Event{hold(1, "k", x, 0, 2, 20, released(30)...)},
		), violated: "held by two"},
		"readers together": {records: records(
			[][]history.Event{hold(1, "k", s, 0, 1, 10, released(21)...)}, [][]history.Event{hold(1, "k", s, 0, 2, 20, released(30)...)},
		)},
		"a writer among readers": {records: records(
			[][]history.Event{hold(1, "k", s, 0, 1, 10, released(21)...)}, [][]history.Event{hold(1, "k", x, 0, 2, 20, released(30)...)},
		), violated: "held by two"},
		"told too late": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 1, 10, lost(25)...)}, [][]history.Event{hold(1, "k", x, 0, 2, 20, released(30)...)},
		), overlaps: []Overlap{{"k", 5, false}}},
		"the next was shorter": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 1, 10, lost(25)...)}, [][]history.Event{hold(1, "k", x, 0, 2, 20, released(22)...)},
		), overlaps: []Overlap{{"k", 2, false}}},
		"a hand-over after the end of the session": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 1, 10, released(23)...), hold(2, "k", x, 0, 2, 24, lost(26)...)},
			[][]history.Event{hold(1, "k", x, 0, 32, 20, released(22)...)},
		), overlaps: []Overlap{{"k", 2, true}}},
		"the process stood still": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 1, 10, lost(30)...), stood}, [][]history.Event{hold(1, "k", x, 0, 2, 20, released(29)...)},
		)},
		"a token that falls": {records: records(
			[][]history.Event{hold(1, "k", x, 0, 2, 10, released(12)...)}, [][]history.Event{hold(1, "k", x, 0, 1, 20, released(30)...)},
		), violated: "does not rise"},
		"too many permits": {records: records(
			[][]history.Event{hold(1, "storm/three", "", 2, 1, 10, released(25)...)},
			[][]history.Event{hold(1, "storm/three", "", 2, 33, 20, released(30)...)},
		), violated: "held by two"},
		"all permits": {records: records(
			[][]history.Event{hold(1, "storm/three", "", 2, 1, 10, released(25)...)},
			[][]history.Event{hold(1, "storm/three", "", 1, 33, 20, released(30)...)},
		)},
		"two runs in two windows": {records: records([][]history.Event{ran(0, 1)}, [][]history.Event{ran(400, 402)})},
		"two runs in a window":    {records: records([][]history.Event{ran(0, 1)}, [][]history.Event{ran(390, 398)}), violated: "ran twice"},
		"a run that was stopped before its func": {
			records: records([][]history.Event{ran(0, 900)}, [][]history.Event{ran(450, 451)}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(c.records, capacities)
			if c.violated == "" {
				require.Empty(t, v.violations)
			} else {
				require.Len(t, v.violations, 1)
				require.Contains(t, v.violations[0], c.violated)
			}
			require.Equal(t, c.overlaps, v.overlaps)
		})
	}
	require.Equal(t, 400*time.Millisecond, worker.OnceWindow)
}

// A failover may forget what was written since the servers were last seen to be alike, and nothing else.
func TestForgotten(t *testing.T) {
	t.Parallel()
	failovers := []Failover{{Whole: 10, Began: 20, Lost: 30, Records: true}, {Whole: 110, Began: 120, Lost: 130, Records: true, Commits: true}}
	for name, c := range map[string]struct {
		what            written
		from, to, later int64
		forgotten       bool
	}{
		"a record of before":                   {ownRecord, 1, 9, 25, false},
		"a record that nobody waited for":      {ownRecord, 11, 12, 25, true},
		"a record that was sent before":        {ownRecord, 9, 11, 25, true},
		"a record whose answer came late":      {ownRecord, 19, 40, 45, true},
		"a record of the new server":           {ownRecord, 31, 32, 50, false},
		"a record that is asked for before it": {ownRecord, 11, 12, 19, false},
		"a commit that was waited for":         {commit, 11, 12, 200, false},
		"a commit":                             {commit, 115, 116, 200, true},
	} {
		require.Equal(t, c.forgotten, forgotten(failovers, c.what, c.from, c.to, c.later), name)
	}
}

func TestJudge_RepeatedRun(t *testing.T) {
	t.Parallel()
	ms := int64(time.Millisecond)
	runs := func(at ...int64) (list []record) {
		var events [][]history.Event
		for _, at := range at {
			events = append(events, []history.Event{{At: at * ms, Kind: history.Ran, From: at * ms, Key: "o"}})
		}
		return records(events)
	}
	failover := Failover{Whole: 90 * ms, Began: 200 * ms, Lost: 250 * ms, Records: true}
	v := judge(runs(100, 300), nil, failover)
	require.Empty(t, v.violations)
	require.Equal(t, 1, v.repeated)
	v = judge(runs(100, 150), nil, failover)
	require.Len(t, v.violations, 1, "both were before the failover")
	v = judge(runs(80, 300), nil, failover)
	require.Len(t, v.violations, 1, "the first one is on the new server")
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	list := records([][]history.Event{
		hold(1, "k", x, 0, 1, 10, released(12)...), hold(2, "k", x, 0, 5, 90, released(92)...), hold(3, "s", "", 1, 5, 50, released(92)...),
	}, [][]history.Event{hold(1, "k", x, 0, 2, 30, released(32)...), hold(2, "k", x, 0, 6, 100, released(102)...)})
	failovers := []Failover{{Began: 35, Ended: 85}}
	measure(list, failovers)
	require.Equal(t, time.Duration(60), failovers[0].Without)
	require.Equal(t, time.Duration(80), failovers[0].Last)
}
