package worker

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton"
)

// Report is what became of a storm in one process.
type Report struct {
	Ops        map[string]*OpReport `json:"ops"`
	Violations []string             `json:"violations,omitempty"`
	Missing    []Missing            `json:"missing,omitempty"`
	Mutated    [][2]int64           `json:"mutated,omitempty"` // calls of Mutate that said that they wrote: when they began and when they said so
	MayMutate  int                  `json:"may_mutate"`        // how many others may have written
}

// OpReport is about one kind of operation.
type OpReport struct {
	Tried   int64            `json:"tried"`
	Granted int64            `json:"granted"`
	Refused int64            `json:"refused"` // the call matched ErrNotAcquired
	Lost    int64            `json:"lost"`
	Errors  map[string]int64 `json:"errors,omitempty"` // by what they match
	Late    int64            `json:"late"`             // calls that returned more than 50 ms after their context's end
	Latest  int64            `json:"latest_ns"`        // the longest time from a context's end to the return
}

// Missing is a transaction that was told to be committed, and is not there.
type Missing struct {
	Op     string `json:"op"`
	Called int64  `json:"called"`
	At     int64  `json:"at"` // when that was told
}

// Add adds another process's.
func (o *OpReport) Add(more *OpReport) {
	o.Tried += more.Tried
	o.Granted += more.Granted
	o.Refused += more.Refused
	o.Lost += more.Lost
	o.Late += more.Late
	o.Latest = max(o.Latest, more.Latest)
	for label, n := range more.Errors {
		o.count(label, n)
	}
}

func (o *OpReport) count(label string, n int64) {
	if o.Errors == nil {
		o.Errors = map[string]int64{}
	}
	o.Errors[label] += n
}

// lateness is a call that returned after its context's end.
type lateness struct {
	op       string
	from, to int64
}

const lateFrom = 50 * time.Millisecond

// stats collects what became of the calls.
type stats struct {
	mu    sync.Mutex
	ops   map[string]*OpReport
	marks map[string]int64 // granted, at the last question
	late  []lateness

	mutated   [][2]int64
	mayMutate int
}

func newStats() *stats {
	return &stats{ops: map[string]*OpReport{}, marks: map[string]int64{}}
}

func (s *stats) op(name string) *OpReport {
	o := s.ops[name]
	if o == nil {
		o = &OpReport{}
		s.ops[name] = o
	}
	return o
}

// note counts a call whose context was ctx.
func (s *stats) note(op string, ctx context.Context, r Result) { //nolint:revive // ctx is what was measured
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.op(op)
	o.Tried++
	if deadline, ok := ctx.Deadline(); ok {
		if over := time.Since(deadline); over > 0 {
			s.late = append(s.late, lateness{op, r.At - int64(over), r.At})
		}
	}
	switch {
	case r.err == nil:
		o.Granted++
	case op == "Lead returns" && ctx.Err() != nil && errors.Is(r.err, ctx.Err()): // as Lead promises
	case r.NotAcquired:
		o.Refused++
		if r.TimedOut { // an ordinary end of a wait
			return
		}
		fallthrough
	default:
		o.count(label(op, ctx, r.err), 1)
	}
}

// loss counts a release that said that the lock had been lost.
func (s *stats) loss(op string, r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.op(op)
	if r.Lost {
		o.Lost++
		o.count("lost: "+pgbaton.LossReasonOf(r.err), 1)
		return
	}
	o.count("release: "+label(op, context.Background(), r.err), 1)
}

// remark counts what is no error, and is to be seen.
func (s *stats) remark(op, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.op(op).count(text, 1)
}

// mutation keeps what a call of Mutate said.
func (s *stats) mutation(r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.OK() {
		s.mutated = append(s.mutated, [2]int64{r.Called, r.At})
	} else {
		s.mayMutate++
	}
}

func (s *stats) since(counts map[string]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, o := range s.ops {
		counts[name] += o.Granted - s.marks[name]
		s.marks[name] = o.Granted
	}
}

func (s *stats) report(stood *stalls, violations []string, missing []Missing) *Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.late {
		over := l.to - l.from - stood.within(l.from, l.to)
		o := s.op(l.op)
		o.Latest = max(o.Latest, over)
		if over > int64(lateFrom) {
			o.Late++
		}
	}
	return &Report{Ops: s.ops, Violations: violations, Missing: missing, Mutated: s.mutated, MayMutate: s.mayMutate}
}

// sentinels are the library's own errors.
var sentinels = map[string]error{
	"ErrNotAcquired": pgbaton.ErrNotAcquired, "ErrLost": pgbaton.ErrLost, "ErrTooManyLocks": pgbaton.ErrTooManyLocks,
	"ErrDeadlock": pgbaton.ErrDeadlock, "ErrPooler": pgbaton.ErrPooler, "ErrStandby": pgbaton.ErrStandby,
	"ErrUnsupportedServer": pgbaton.ErrUnsupportedServer, "ErrSchema": pgbaton.ErrSchema, "ErrClosed": pgbaton.ErrClosed,
	"ErrResigned": pgbaton.ErrResigned, "ErrNotHeld": pgbaton.ErrNotHeld, "ErrConflict": pgbaton.ErrConflict,
	"ErrStaleToken": pgbaton.ErrStaleToken, "ErrCapacityMismatch": pgbaton.ErrCapacityMismatch,
	"ErrNotFound": pgbaton.ErrNotFound, "ErrCommitUnknown": pgbaton.ErrCommitUnknown,
}

// Raw begins the label of an error that matches none of the library's, of a call that uses the client's own sessions.
const Raw = "raw: "

// ownConnection are the operations whose errors may be those of the caller's own connection.
var ownConnection = []string{"DoTx", "DoTx, fenced", "AcquireTx", "InTx", "Mutate", "Fence"}

// label returns what an error matches.
func label(op string, ctx context.Context, err error) string { //nolint:revive // ctx is what was measured
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(sentinels)) {
		if errors.Is(err, sentinels[name]) {
			parts = append(parts, name)
		}
	}
	known := len(parts) > 0
	if due := (*pgbaton.NotDueError)(nil); errors.As(err, &due) {
		parts = append(parts, map[bool]string{true: "(somebody runs it)", false: "(not due)"}[due.Running])
	}
	var server *pgconn.PgError
	if errors.As(err, &server) {
		parts = append(parts, server.Code)
	}
	switch {
	case known:
		return strings.Join(parts, " ")
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return "context ended, and no more"
	case slices.Contains(ownConnection, op):
		return "own connection: " + strings.Join(append(parts, plain(err)), " ")
	}
	return Raw + plain(err)
}

var (
	addresses = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+(:\d+)?`)
	numbersRE = regexp.MustCompile(`\d+`)
	spaces    = regexp.MustCompile(`\s+`)
)

// plain returns an error's text without what differs from call to call.
func plain(err error) string {
	text := addresses.ReplaceAllString(err.Error(), "ADDRESS")
	text = spaces.ReplaceAllString(numbersRE.ReplaceAllString(text, "#"), " ")
	if runes := []rune(text); len(runes) > 160 {
		text = string(runes[:160]) + "…"
	}
	return text
}
