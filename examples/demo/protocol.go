package demo

import "time"

// Parent and worker talk in JSON lines. The parent writes the job, and "go" (any line) when all workers are
// ready, and whenever one waits to be told; the end of the worker's input tells it to stop. The worker writes messages.

// job is what a worker process is started for.
type job struct {
	Kind     string        `json:"kind"`
	Locked   bool          `json:"locked"`
	Duration time.Duration `json:"duration"`
	Work     time.Duration `json:"work"`
	Employee int64         `json:"employee"`
	Fenced   bool          `json:"fenced"`
	TTL      time.Duration `json:"ttl"` // of the client; 0: the default
}

// What a message reports.
const (
	eventReady    = "ready"    // connected, waits for "go"
	eventProgress = "progress" // counts since the last message
	eventDone     = "done"     // the last counts
	eventFailed   = "failed"   // could not do the job at all
	eventWaiting  = "waiting"  // is about to wait for the lock
	eventGranted  = "granted"  // has the lock
	eventHolding  = "holding"  // has the lock, has read Salary, and is in the middle of a change
)

// message is what a worker tells its parent.
type message struct {
	Event  string `json:"event"`
	Error  string `json:"error,omitempty"`
	Salary int64  `json:"salary,omitempty"`
	Term   int64  `json:"term,omitempty"` // of a leader

	counts
}

// counts is what happened in a while.
type counts struct {
	Mutations []time.Duration `json:"mutations,omitempty"` // how long each took
	Reads     int             `json:"reads,omitempty"`
	Torn      int             `json:"torn,omitempty"`
	Conflicts int             `json:"conflicts,omitempty"` // attempts that came too late
	Refused   int             `json:"refused,omitempty"`   // calls that ended with a conflict
	Errors    int             `json:"errors,omitempty"`    // calls that ended with any other error
	Problem   string          `json:"problem,omitempty"`   // the first error
}

func (c *counts) add(more counts) {
	c.Mutations = append(c.Mutations, more.Mutations...)
	c.Reads += more.Reads
	c.Torn += more.Torn
	c.Conflicts += more.Conflicts
	c.Refused += more.Refused
	c.Errors += more.Errors
	if c.Problem == "" {
		c.Problem = more.Problem
	}
}
