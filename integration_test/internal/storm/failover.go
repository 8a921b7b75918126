package storm

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// Script lets failovers happen, one after the other, and returns them. It calls settle after each: the storm goes on until
// every operation has succeeded again in every process.
type Script func(ctx context.Context, settle func()) []Failover

// Failover is the replacement of a server by another one, with the stamps of package history.
type Failover struct {
	Kind string `json:"kind"`
	// Began is when the old server was asked to give up, was killed or was frozen, Led when the new one led, and Ended
	// when both were in order.
	Began int64 `json:"began"`
	Led   int64 `json:"led"`
	Ended int64 `json:"ended"`
	// Whole is a time before which all that had been written was on the new server as well. Records of the
	// library that were written between Whole and Lost may be lost if Records is true, and the service's own commits if
	// Commits is true.
	Whole   int64 `json:"whole"`
	Lost    int64 `json:"lost"`
	Records bool  `json:"records"`
	Commits bool  `json:"commits"`

	// Without is the longest time, from Began to Ended, in which no process was granted a lock, and Last the longest in which
	// one of the processes was not.
	Without time.Duration `json:"without_ns"`
	Last    time.Duration `json:"last_ns"`
}

// written is what a failover may lose.
type written int

const (
	ownRecord written = iota // of the library
	commit                   // of the service's transaction
)

// forgotten reports whether a failover that began before a later time may have lost what was written in an interval.
func forgotten(failovers []Failover, what written, from, to, later int64) bool {
	return slices.ContainsFunc(failovers, func(f Failover) bool {
		loses := f.Records
		if what == commit {
			loses = f.Commits
		}
		return loses && from <= f.Lost && to >= f.Whole && later > f.Began
	})
}

// commits checks that the transactions that were told to be committed are there, unless a failover may have lost them.
func (f *fight) commits(reports []*worker.Report) {
	for _, report := range reports {
		for _, m := range report.Missing {
			if forgotten(f.outcome.Failovers, commit, m.Called, m.At, math.MaxInt64) {
				f.outcome.Forgotten++
				continue
			}
			f.violate("%s said nil, and the transaction is not there", m.Op)
		}
	}
}

// measure finds out for how long there were no locks.
func measure(records []record, failovers []Failover) {
	if len(failovers) == 0 {
		return
	}
	var all []int64
	for _, r := range records {
		var got []int64
		grants, _ := history.Grants(r.process, r.events, 0)
		for _, g := range grants {
			if g.N == 0 {
				got = append(got, g.Got)
			}
		}
		all = append(all, got...)
		slices.Sort(got)
		for i := range failovers {
			failovers[i].Last = max(failovers[i].Last, longest(got, failovers[i]))
		}
	}
	slices.Sort(all)
	for i := range failovers {
		failovers[i].Without = longest(all, failovers[i])
	}
}

// longest returns the longest time between two grants that reaches into a failover. The grants are in order.
func longest(got []int64, f Failover) (most time.Duration) {
	for i := 1; i < len(got); i++ {
		if got[i] >= f.Began && got[i-1] <= f.Ended {
			most = max(most, time.Duration(got[i]-got[i-1]))
		}
	}
	return most
}
