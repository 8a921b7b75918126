// Package worker runs clients of the library in operating-system processes of their own, so that a test can
// kill, freeze and resume them. A test binary starts itself again: TestMain calls [Main], which turns a
// process with the right environment variable into a worker.
//
// The parent sends commands as JSON lines, any number at a time; each is answered once, with stamps taken in
// the worker. What the worker does with locks is also written to its history, see package history.
package worker

import "time"

// envLog names the history file of a worker; a process without it is none.
const envLog = "PGBATON_TEST_WORKER"

// What a command does.
const (
	Open       = "open"        // make client Client on DSN
	Close      = "close"       // close client Client
	Acquire    = "acquire"     // acquire Key, or N permits of the semaphore Key, or the set Key/0 … Key/Count-1, keep it as As
	AcquireAll = "acquire-all" // acquire keys Key/0 … Key/Count-1, keep them as Key/N
	Release    = "release"     // release As
	ReleaseAll = "release-all" // release Key/0 … Key/Count-1, one every Pause
	Err        = "err"         // ask As whether it is held
	Watch      = "watch"       // answered when As is over
	Guard      = "guard"       // look at As all the time; answered after the process stood still or As is over
	Hammer     = "hammer"      // see hammer.go
	Crowd      = "crowd"       // Goroutines on each of Key/0 … Key/Count-1: acquire, release, done
	Permits    = "permits"     // see permits.go
	Assert     = "assert"      // AssertPermit of As in a transaction of its own on DSN
	Stop       = "stop"        // let every hammer, load of permits and service end before its time; with Client its service alone
	Relay      = "relay"       // acquire Key, hold it for Hold, release it, Count times
	Sets       = "sets"        // see sets.go
	Gather     = "gather"      // acquire keys Key/0 … Key/Count-1 as a set, keep it as As
	Lead       = "lead"        // be a candidate for Key, or for Key/0 … Key/Count-1; with DSN each term writes, fenced
	Resign     = "resign"      // from Key
	AskResign  = "ask-resign"  // the leader of Key
	Serve      = "serve"       // see service.go
	Storm      = "storm"       // see storm.go; answered when it has ended
	StormSince = "storm-since" // what has succeeded since the last such question
	StormEnd   = "storm-end"   // let the storm end
	Exit       = "exit"        // close all clients, look for goroutines left behind, end
)

// Command is what the parent asks for.
type Command struct {
	ID     int    `json:"id"`
	Do     string `json:"do"`
	Client string `json:"client,omitempty"`
	DSN    string `json:"dsn,omitempty"`

	Name     string        `json:"name,omitempty"`   // of Open: Config.Name
	Engine   string        `json:"engine,omitempty"` // of Open; that of all tests if it is empty
	TTL      time.Duration `json:"ttl,omitempty"`
	MaxConns int           `json:"max_conns,omitempty"`
	MaxHeld  int           `json:"max_held,omitempty"`

	Key     string        `json:"key,omitempty"`
	As      string        `json:"as,omitempty"`
	Shared  bool          `json:"shared,omitempty"`
	N       int           `json:"n,omitempty"`       // permits; 0 is a lock
	Exactly bool          `json:"exactly,omitempty"` // permits: always N
	Try     bool          `json:"try,omitempty"`
	Within  time.Duration `json:"within,omitempty"` // the context's deadline; a minute if not given

	Kind       string        `json:"kind,omitempty"` // of hammer
	Keys       int           `json:"keys,omitempty"`
	Count      int           `json:"count,omitempty"`
	Goroutines int           `json:"goroutines,omitempty"` // for each client
	Clients    int           `json:"clients,omitempty"`
	For        time.Duration `json:"for,omitempty"`
	Hold       time.Duration `json:"hold,omitempty"`
	Pause      time.Duration `json:"pause,omitempty"`
	File       string        `json:"file,omitempty"` // shared between processes
	Bare       bool          `json:"bare,omitempty"` // pg_advisory_lock instead of the library
	Faults     bool          `json:"faults,omitempty"`

	Load *Load `json:"load,omitempty"` // of a storm
}

// Answer is what became of a command. Fail is for what should not have happened; an error that an operation
// of the library is allowed to return is in Result.
type Answer struct {
	ID     int              `json:"id"`
	Fail   string           `json:"fail,omitempty"`
	Result Result           `json:"result"`
	Steps  []Result         `json:"steps,omitempty"`
	Counts map[string]int64 `json:"counts,omitempty"`
	Report *Report          `json:"report,omitempty"` // of a storm
}

// Result is the outcome of one call of the library.
type Result struct {
	What   string `json:"what,omitempty"`
	Called int64  `json:"called,omitempty"`
	At     int64  `json:"at,omitempty"`
	Token  int64  `json:"token,omitempty"`
	Err    string `json:"err,omitempty"`

	NotAcquired bool `json:"not_acquired,omitempty"`
	Lost        bool `json:"lost,omitempty"`
	NotHeld     bool `json:"not_held,omitempty"`
	TooMany     bool `json:"too_many,omitempty"`
	Deadlock    bool `json:"deadlock,omitempty"`
	TimedOut    bool `json:"timed_out,omitempty"`

	err error // in the worker only
}

// OK reports that the call returned no error.
func (r Result) OK() bool { return r.Err == "" }
