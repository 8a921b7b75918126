package demo

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	var (
		torn  = row{mutations: 50, reads: 100, torn: 20}
		clean = row{mutations: 50, reads: 100}

		conflicts = row{mutations: 10, conflicts: 30, refused: 30}

		chain = func(change func(*succession)) outcome {
			got := succession{holders: 3, waits: []time.Duration{2 * ms, 4 * ms}, final: firstSalary + 3}
			change(&got)
			return judgeSuccession(got)
		}

		reign = func(change func(*dynasty)) outcome {
			got := dynasty{terms: 3, waits: []time.Duration{200 * ms, 900 * ms}, final: firstSalary + 3}
			change(&got)
			return judgeDynasty(got)
		}
		visited = func(visits, peak int) crowding {
			return crowding{row{mutations: visits}, hall{peak: peak, visits: visits}}
		}

		thawed = func(change func(without, with *aftermath)) outcome {
			times := summary{average: 1100 * ms, longest: 1200 * ms}
			without := aftermath{row: row{mutations: 2 * frozenRounds, lost: frozenRounds, times: times}}
			with := aftermath{row: row{mutations: frozenRounds, refused: frozenRounds, times: times}, late: frozenRounds}
			change(&without, &with)
			return judgeFrozen(without, with)
		}
	)
	for name, tt := range map[string]struct {
		outcome outcome
		failure string // part of the only failure; empty: everything as expected
	}{
		"Unlocked/Lost":    {judgeUnlocked(row{mutations: 10, lost: 4}), ""},
		"Unlocked/NonLost": {judgeUnlocked(row{mutations: 10}), "proved nothing"},
		"Unlocked/Errors":  {judgeUnlocked(row{mutations: 10, lost: 4, errors: 2, problem: "away"}), "2 errors; the first: away"},

		"Advisory/NonLost": {judgeAdvisory(row{mutations: 10}), ""},
		"Advisory/Lost":    {judgeAdvisory(row{mutations: 10, lost: 1}), "must never happen"},
		"Advisory/Surplus": {judgeAdvisory(row{mutations: 10, lost: -1}), "must never happen"},
		"Advisory/Nothing": {judgeAdvisory(row{}), "proved nothing"},
		"Advisory/Errors":  {judgeAdvisory(row{mutations: 10, errors: 1, problem: "away"}), "the first: away"},

		"RowLocked/NonLost": {judgeRowLocked(row{mutations: 10}), ""},
		"RowLocked/Lost":    {judgeRowLocked(row{mutations: 10, lost: 1}), "must never happen"},

		"Version/Conflicts":  {judgeVersion(conflicts), ""},
		"Version/NoConflict": {judgeVersion(row{mutations: 10}), "no conflict, so this run proved nothing"},
		"Version/Lost":       {judgeVersion(row{mutations: 10, lost: 1, conflicts: 5, refused: 5}), "must never happen"},
		"Version/AllRefused": {judgeVersion(row{conflicts: 5, refused: 5}), "Nobody got a raise"},
		"Version/Errors": {
			judgeVersion(row{mutations: 10, conflicts: 5, refused: 5, errors: 1, problem: "away"}), "1 errors; the first: away",
		},

		"Mutate/Retried":    {judgeMutate(row{mutations: 10, conflicts: 5}), ""},
		"Mutate/GaveUp":     {judgeMutate(conflicts), ""},
		"Mutate/NoConflict": {judgeMutate(row{mutations: 10}), "no conflict, so this run proved nothing"},
		"Mutate/Lost":       {judgeMutate(row{mutations: 10, lost: 1, conflicts: 5}), "must never happen"},

		"Audit/Clean":        {judgeAudit(torn, clean), ""},
		"Audit/Torn":         {judgeAudit(torn, torn), "must never happen"},
		"Audit/Lost":         {judgeAudit(torn, row{mutations: 50, reads: 100, lost: 1}), "must never happen"},
		"Audit/NeverTorn":    {judgeAudit(clean, clean), "proved nothing"},
		"Audit/NoReads":      {judgeAudit(torn, row{mutations: 50}), "proved nothing"},
		"Audit/NoWrites":     {judgeAudit(torn, row{reads: 50}), "proved nothing"},
		"Audit/Errors":       {judgeAudit(torn, row{mutations: 50, reads: 100, errors: 1, problem: "away"}), "the first: away"},
		"Audit/ErrorsBefore": {judgeAudit(row{torn: 1, errors: 1, problem: "away"}, clean), "the first: away"},

		"Killed/Good":  {chain(func(*succession) {}), ""},
		"Killed/Late":  {chain(func(s *succession) { s.waits[1] = grantWithin + ms }), "at most 1000 ms was expected"},
		"Killed/Early": {chain(func(s *succession) { s.early = 1 }), "while another held it"},
		"Killed/Wrong": {chain(func(s *succession) { s.wrong = 1 }), "another salary"},
		"Killed/Final": {chain(func(s *succession) { s.final-- }), "the last salary is 1000002, not 1000003"},

		"Leader/Good":   {reign(func(*dynasty) {}), ""},
		"Leader/Late":   {reign(func(d *dynasty) { d.waits[1] = leadWithin + ms }), "at most 1500 ms was expected"},
		"Leader/Early":  {reign(func(d *dynasty) { d.early = 1 }), "while another one did"},
		"Leader/Fallen": {reign(func(d *dynasty) { d.fallen = 1 }), "not greater than the one before"},
		"Leader/Final":  {reign(func(d *dynasty) { d.final-- }), "the last salary is 1000002, not 1000003"},

		"Frozen/Good":    {thawed(func(_, _ *aftermath) {}), ""},
		"Frozen/Late":    {thawed(func(w, _ *aftermath) { w.times.longest = freedWithin + ms }), "at most 2000 ms was"},
		"Frozen/Early":   {thawed(func(_, w *aftermath) { w.early = 1 }), "1 holders had lost the lock before"},
		"Frozen/NonLost": {thawed(func(w, _ *aftermath) { w.lost = 0 }), "no late write covered a new one"},
		"Frozen/Errors": {
			thawed(func(w, _ *aftermath) { w.lost, w.errors, w.problem = 0, 1, "away" }), "1 errors; the first: away",
		},
		"Frozen/FenceLost":     {thawed(func(_, w *aftermath) { w.lost = 1 }), "1 of 3 raises were lost"},
		"Frozen/FenceAccepted": {thawed(func(_, w *aftermath) { w.late-- }), "2 of 3 late writes were refused"},
		"Frozen/FenceTooStrict": {
			thawed(func(_, w *aftermath) { w.mutations-- }), "please report it",
		},
		"Frozen/FenceErrors": {
			thawed(func(_, w *aftermath) { w.late, w.errors, w.problem = 2, 1, "away" }), "1 errors; the first: away",
		},

		"Hall/Good":    {judgeHall(visited(100, 12), visited(50, 3)), ""},
		"Hall/Unused":  {judgeHall(visited(100, 12), visited(50, 2)), ""},
		"Hall/Never":   {judgeHall(visited(100, 3), visited(50, 3)), "at most 3 workers were at work at the same time, so"},
		"Hall/Over":    {judgeHall(visited(100, 12), visited(50, 4)), "4 workers were at work at the same time. That must never"},
		"Hall/Nothing": {judgeHall(visited(100, 12), visited(0, 0)), "nobody got to work"},
		"Hall/Inside":  {judgeHall(visited(100, 12), crowding{row{mutations: 5}, hall{1, 3, 5}}), "1 workers were still"},
		"Hall/Errors": {
			judgeHall(visited(100, 12), crowding{row{mutations: 5, errors: 1, problem: "away"}, hall{1, 3, 5}}), "the first: away",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.failure == "" {
				require.Empty(t, tt.outcome.failures)
				require.NotEmpty(t, tt.outcome.seen)
				require.NotContains(t, strings.Join(tt.outcome.seen, " "), "%!")
				return
			}
			require.Len(t, tt.outcome.failures, 1)
			require.Contains(t, tt.outcome.failures[0], tt.failure)
		})
	}
}

func TestConclude(t *testing.T) {
	t.Parallel()
	good := outcome{compared: []row{{title: "good"}}, seen: []string{"Fine."}}
	bad := outcome{rows: []row{{title: "bad"}}, failures: []string{"It proved nothing."}}

	text, ok := conclude([]outcome{good, good})
	require.True(t, ok)
	require.Contains(t, text, "2. Fine.\n\n"+choice+"\nEverything was as expected.\n")

	text, ok = conclude([]outcome{good, bad})
	require.False(t, ok)
	require.Contains(t, text, "2. It proved nothing.\n\n"+choice+"\nNot as expected: 1 of 2 sections.\n")
}

func TestConclude_FitsIntoAHundredColumns(t *testing.T) {
	t.Parallel()
	text, _ := conclude(nil)
	for line := range strings.Lines(text) {
		require.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 100, line)
	}
}

func TestNote(t *testing.T) {
	t.Parallel()
	r := row{mutations: 1000, lost: 2}
	require.Equal(t, "1,000 mutations, 2 lost, as expected", outcome{compared: []row{r}}.note())
	require.Equal(t, "left out", outcome{seen: []string{"Left out."}}.note())
	bad := outcome{rows: []row{{}, r}, failures: []string{"no"}}
	require.Equal(t, "1,000 mutations, 2 lost, not as expected", bad.note())
}

func TestProgress(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	p := &progress{w: &out}
	p.begin(1, 4, "no lock")
	p.update(0.5, "10 mutations")
	p.end("20 mutations")
	require.Equal(t, "1/4 no lock: 20 mutations\n", out.String())

	out.Reset()
	p.terminal = true
	p.update(0.5, "10 mutations")
	require.Equal(t, "\r\x1b[K1/4 no lock                [###############...............]  50%  10 mutations", out.String())
	p.update(7, "")
	require.Contains(t, out.String(), "] 100%")
	p.end("20 mutations")
	require.True(t, strings.HasSuffix(out.String(), "\r\x1b[K"))
	require.False(t, newProgress(&out).terminal)
}
