// Package storm uses every primitive of the library at the same time from several processes, lets one kind of fault
// happen all the while, and judges what the processes saw.
//
// A storm that ends without a violation has shown this: on certain intervals, from the return of an acquire to the call
// of its release or the news of its loss, no key had two exclusive holders and no semaphore more permits than its
// capacity, except for the overlaps that it counts; tokens rose; no counter that a lock or a transaction guards lost a
// change; what a caller was told of a transaction is what the database has; Once ran at most once in a window; after the
// faults every operation succeeded again in every process, every call returned, and nothing was left on the server.
// The intervals are measured by the monotonic clock, which all processes of a machine share. A storm does
// not show that no such thing can happen: the next seed may meet it.
//
// An overlap is a moment in which an old holder, whose session the server had ended, was not told yet while the next
// had the key already. The library promises to keep them short, not that there are none. Kinds of faults
// in which the server ends no session before its client must have stopped trusting it allow next to none: the time that a
// goroutine takes to wake.
package storm

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// Options are of one storm.
type Options struct {
	Kind      Kind
	Server    Server        // of this process's own, for it may be restarted
	Other     Server        // for Moved
	Script    Script        // of Failovers
	Addresses []string      // of processes, where they are not the Server's; one with commas is several servers'
	Pooler    string        // address of a pooler that all clients go through, but not the service's own pool
	For       time.Duration // how long there are faults
	TTL       time.Duration
	Processes int
	Clients   int           // in each process
	Pause     time.Duration // the longest rest of a client's goroutine between two operations: 3 ms if it is zero
	Seed      uint64
	// Bound is the longest overlap that a kind of fault with overlaps may have.
	Bound time.Duration
	// Strict is the longest overlap that any other kind may have, 50 ms if it is zero: the library has told the holder, and the
	// holder's goroutine has not run yet. A broken window of trust would be a tenth of TTL or more, where the machine is calm.
	Strict time.Duration
	// Both is for how long a client may be on two servers, while it moves, or dials one to refuse it: a second if it is zero.
	Both time.Duration
	// Late is by how much a call may come back after its context's end, where it releases a lock on a dead network after
	// TTL more. Zero asks for nothing: a slow machine takes its time.
	Late   time.Duration
	Engine string // of the clients; that of all tests if it is empty
	Mutant string // a mistake on purpose, see package worker
}

// Outcome is what became of a storm.
type Outcome struct {
	Kind       Kind                        `json:"kind"`
	Major      int                         `json:"major"`
	Seed       uint64                      `json:"seed"`
	Seconds    float64                     `json:"seconds"`
	Faults     int64                       `json:"faults"`
	Holds      int                         `json:"holds"` // grants whose intervals were judged
	Ops        map[string]*worker.OpReport `json:"ops"`
	Total      worker.OpReport             `json:"total"`
	Violations []string                    `json:"violations"`
	Overlaps   Overlaps                    `json:"overlaps"`
	Healed     time.Duration               `json:"healed_ns"` // after the faults, until everything had succeeded everywhere
	Left       map[string]int              `json:"left"`      // rows of the schema's tables at the end

	Failovers []Failover `json:"failovers,omitempty"`
	Forgotten int        `json:"forgotten,omitempty"` // transactions that were told to be committed, and are lost with a server
	Repeated  int        `json:"repeated,omitempty"`  // runs of Once within a window of a run whose record is lost with a server
}

// Overlaps are those of a storm.
type Overlaps struct {
	Count  int           `json:"count"`
	Silent int           `json:"silent"` // of them, those whose old holder was not told at all
	P50    time.Duration `json:"p50_ns"`
	Max    time.Duration `json:"max_ns"`

	Keys map[string]int `json:"keys,omitempty"` // how many there were of each key
}

// fight is a storm under way.
type fight struct {
	tb      worker.TB
	opts    Options
	home    *field
	away    *field
	proxies []*Proxy // one for each process, if there are any
	workers []*worker.Process
	storms  []*worker.Call
	killed  []victim

	injected atomic.Int64
	outcome  *Outcome
}

const (
	warmUp       = 90 * time.Second // until everything has succeeded once
	healing      = 60 * time.Second
	lastAnswers  = 60 * time.Second // of calls whose contexts end within 10 s
	oftenEnough  = 100 * time.Millisecond
	clientsConns = 4
)

// Run lets a storm happen and returns what became of it.
func Run(ctx context.Context, tb worker.TB, opts Options) *Outcome {
	tb.Helper()
	f := &fight{tb: tb, opts: opts, outcome: &Outcome{
		Kind: opts.Kind, Major: opts.Server.Major(), Seed: opts.Seed, Ops: map[string]*worker.OpReport{}, Left: map[string]int{},
	}}
	f.home = prepare(tb, opts.Server)
	if opts.Kind == Moved {
		f.away = prepare(tb, opts.Other)
	}
	f.begin()
	begun := time.Now()
	if f.until(ctx, warmUp, "before the faults") {
		f.hit(ctx)
		f.outcome.Seconds = time.Since(begun).Seconds()
		f.outcome.Faults = f.injected.Load()
		if ctx.Err() == nil {
			f.heal(ctx)
		}
	}
	f.finish(ctx)
	return f.outcome
}

// hit lets the faults happen.
func (f *fight) hit(ctx context.Context) {
	if f.opts.Kind == Failovers {
		f.outcome.Failovers = f.opts.Script(ctx, func() {
			f.injected.Add(1)
			f.heal(ctx)
		})
		return
	}
	faulty, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		f.enough(faulty)
	}()
	f.faults(faulty)
}

// enough returns when there were faults for as long as was asked for, and one at least.
func (f *fight) enough(ctx context.Context) {
	rest(ctx, f.opts.For)
	if f.opts.Kind == None || f.opts.Kind == Slow {
		return
	}
	for end := time.Now().Add(lab.Hang); f.injected.Load() == 0 && time.Now().Before(end) && rest(ctx, oftenEnough); {
	}
}

func (f *fight) violate(format string, args ...any) {
	f.outcome.Violations = append(f.outcome.Violations, fmt.Sprintf(format, args...))
}

// begin starts the processes and their loads.
func (f *fight) begin() {
	f.workers, f.storms = make([]*worker.Process, f.opts.Processes), make([]*worker.Call, f.opts.Processes)
	for i := range f.opts.Processes {
		if f.opts.Kind.proxied() {
			proxy, err := NewProxy(f.home.addr)
			require.NoError(f.tb, err)
			f.tb.Cleanup(proxy.Close)
			if f.opts.Kind == Slow {
				proxy.Delay(50 * time.Millisecond)
			}
			f.proxies = append(f.proxies, proxy)
		}
		f.start(i)
	}
}

// start starts a process and its load, perhaps in the place of one that was killed.
func (f *fight) start(i int) {
	through := ""
	if len(f.proxies) > 0 {
		through = f.proxies[i].Addr()
	}
	load := &worker.Load{
		Rows: f.home.url("") + "&application_name=storm-rows", Engine: f.opts.Engine,
		Clients: f.opts.Clients, Pause: cmp.Or(f.opts.Pause, 3*time.Millisecond),
		Seed: f.opts.Seed<<8 | uint64(i+len(f.killed)*f.opts.Processes), Mutant: f.opts.Mutant, //nolint:gosec // a small number
	}
	switch {
	case f.opts.Kind == Slow:
		load.Rows = f.home.url(through) + "&application_name=storm-rows"
	case f.mover(i):
		// Its rows would be on another server than its locks, and two clients on a server each would exclude nobody.
		load.Rows, load.Bulk, load.Clients = "", 1050, 1
	case i < len(f.opts.Addresses):
		through = f.opts.Addresses[i]
		load.Rows = f.home.url(through) + "&application_name=storm-rows"
	}
	through = cmp.Or(f.opts.Pooler, through)
	f.workers[i] = worker.Start(f.tb)
	f.storms[i] = f.workers[i].Begin(worker.Command{
		Do: worker.Storm, As: strconv.Itoa(i), DSN: f.home.url(through), TTL: f.opts.TTL, MaxConns: clientsConns, Load: load,
	})
}

// mover reports whether a process is the one whose address changes.
func (f *fight) mover(i int) bool { return f.opts.Kind == Moved && i == 0 }

// expected returns the operations that must succeed in a process.
func (f *fight) expected(i int) []string {
	ops := []string{"Acquire", "TryAcquire", "AcquireShared", "AcquireAll", "semaphore of 1", "semaphore of 3", "Lead", "Once"}
	if f.mover(i) {
		return append(ops, "bulk")
	}
	return append(ops, "open", "DoTx", "DoTx, fenced", "AcquireTx", "InTx", "Mutate", "Fence")
}

// until waits until every operation has succeeded in every process since the last question. A leader or a run is
// enough in one process, for the others may come too late each time.
func (f *fight) until(ctx context.Context, within time.Duration, when string) bool {
	missing := make([]map[string]bool, len(f.workers))
	for i := range f.workers {
		missing[i] = map[string]bool{}
		for _, op := range f.expected(i) {
			missing[i][op] = true
		}
	}
	for end := time.Now().Add(within); time.Now().Before(end); {
		left := 0
		for i, p := range f.workers {
			a, ok := p.Begin(worker.Command{Do: worker.StormSince}).Answer(within)
			if !ok {
				f.violate("process %d does not answer %s", i, when)
				return false
			}
			for op, n := range a.Counts {
				if n == 0 {
					continue
				}
				delete(missing[i], op)
				if op == "Lead" || op == "Once" {
					for _, m := range missing {
						delete(m, op)
					}
				}
			}
		}
		for _, m := range missing {
			left += len(m)
		}
		if left == 0 {
			return true
		}
		if !rest(ctx, oftenEnough) {
			return false
		}
	}
	for i, m := range missing {
		if len(m) > 0 {
			f.violate("%s, after %v, this had not succeeded in process %d: %v", when, within, i, slices.Sorted(maps.Keys(m)))
		}
	}
	return false
}

// heal waits until everything works again.
func (f *fight) heal(ctx context.Context) {
	for _, p := range f.workers { // what succeeded so far was under faults
		if _, ok := p.Begin(worker.Command{Do: worker.StormSince}).Answer(healing); !ok {
			f.violate("a process does not answer after the faults")
			return
		}
	}
	begun := time.Now()
	f.until(ctx, healing, "after the faults")
	f.outcome.Healed = max(f.outcome.Healed, time.Since(begun))
}

// finish lets the loads end, and judges.
func (f *fight) finish(ctx context.Context) {
	for i, p := range f.workers {
		p.Begin(worker.Command{Do: worker.StormEnd, As: strconv.Itoa(i)})
	}
	var reports []*worker.Report
	for i, call := range f.storms {
		a, ok := call.Answer(lastAnswers)
		if !ok {
			f.violate("calls of process %d never returned", i)
			f.workers[i].Signal(syscall.SIGQUIT) // it says where it hangs
			continue
		}
		if a.Report == nil {
			f.violate("process %d: %s", i, a.Fail)
			continue
		}
		for _, text := range a.Report.Violations {
			f.violate("process %d: %s", i, text)
		}
		for name, report := range a.Report.Ops {
			if f.outcome.Ops[name] == nil {
				f.outcome.Ops[name] = &worker.OpReport{}
			}
			f.outcome.Ops[name].Add(report)
			f.outcome.Total.Add(report)
		}
		reports = append(reports, a.Report)
	}
	if ctx.Err() != nil {
		f.violate("interrupted")
		return
	}
	f.late()
	f.judge()
	f.commits(reports)
	f.rows(ctx, reports)
	f.leftovers(ctx)
}

// late checks that calls came back in time. Most return with their contexts, but a call that has taken a lock releases it,
// which lasts up to TTL.
func (f *fight) late() {
	for _, name := range slices.Sorted(maps.Keys(f.outcome.Ops)) {
		bound := f.opts.Late + f.opts.TTL
		if strings.HasSuffix(name, worker.Releases) {
			bound = f.opts.Late
		}
		if latest := time.Duration(f.outcome.Ops[name].Latest); f.opts.Late > 0 && latest > bound {
			f.violate("%s came back %v too late, the bound is %v", name, latest, bound)
		}
	}
}

// judge checks the histories.
func (f *fight) judge() {
	var records []record
	for i, p := range f.workers {
		group := "home"
		if f.mover(i) {
			group = "moved"
		}
		records = append(records, record{process: i, group: group, moving: f.mover(i), events: p.Events()})
	}
	for i, v := range f.killed {
		records = append(records, record{process: f.opts.Processes + i, group: "home", killed: v.at, events: v.process.Events()})
	}
	v := judge(records, capacities, f.outcome.Failovers...)
	measure(records, f.outcome.Failovers)
	f.outcome.Holds, f.outcome.Repeated = v.grants, v.repeated
	f.outcome.Violations = append(f.outcome.Violations, v.violations...)
	f.outcome.Overlaps.Keys = map[string]int{}
	lengths := make([]int64, 0, len(v.overlaps))
	for _, o := range v.overlaps {
		lengths = append(lengths, int64(o.Length))
		if o.Silent {
			f.outcome.Overlaps.Silent++
		}
		f.outcome.Overlaps.Keys[o.Key]++
		bound := f.opts.Bound
		if !f.opts.Kind.sudden() {
			bound = cmp.Or(f.opts.Strict, 50*time.Millisecond)
		}
		if o.Length > bound {
			f.violate("%q was held by two for %v", o.Key, o.Length)
		}
	}
	spread := lab.NewSpread(lengths)
	f.outcome.Overlaps.Count, f.outcome.Overlaps.P50, f.outcome.Overlaps.Max = len(spread), spread.At(50), spread.Max()
}
