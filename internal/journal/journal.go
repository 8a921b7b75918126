// Package journal writes the events of a client to its log, a few lines for however many there are.
package journal

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// quiet is for how long an event that was written is only counted when it comes again.
const quiet = 10 * time.Second

// Journal writes what happens to a client to its log: of each kind of event the first at once, and from then on one line
// in every quiet time, with how many there were. A server that restarts ends every connection of every client, again and
// again; the log says so in a few lines.
type Journal struct {
	log *slog.Logger

	mu     sync.Mutex
	recent map[string]*recent // by event: the ones that were written within the quiet time
	closed bool
}

// recent is what came of an event since it was written.
type recent struct {
	more  int
	level slog.Level
	last  error
	timer *time.Timer
}

// New makes a journal over a log.
func New(log *slog.Logger) *Journal {
	return &Journal{log: log, recent: map[string]*recent{}}
}

// Log writes an event, or counts it. The text is the event's kind; err may be nil.
func (j *Journal) Log(level slog.Level, event string, err error) {
	j.mu.Lock()
	r := j.recent[event]
	if r != nil {
		r.more++
		r.level, r.last = level, err
		j.mu.Unlock()
		return
	}
	if !j.closed {
		j.recent[event] = &recent{timer: time.AfterFunc(quiet, func() { j.settle(event) })}
	}
	j.mu.Unlock()
	j.write(level, event, err, 0)
}

// Report writes an event as one of interest or, with an error, as a warning.
func (j *Journal) Report(event string, err error) {
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
	}
	j.Log(level, event, err)
}

// settle writes how often an event has come since it was written last, or forgets it when it has not.
func (j *Journal) settle(event string) {
	j.mu.Lock()
	r := j.recent[event]
	if r == nil || r.more == 0 {
		delete(j.recent, event)
		j.mu.Unlock()
		return
	}
	more, level, last := r.more, r.level, r.last
	r.more = 0
	if !j.closed {
		r.timer.Reset(quiet)
	}
	j.mu.Unlock()
	j.write(level, event, last, more)
}

func (j *Journal) write(level slog.Level, event string, err error, more int) {
	var args []any
	if err != nil {
		args = append(args, "error", err)
	}
	if more > 0 {
		args = append(args, "times", more)
	}
	j.log.Log(context.Background(), level, "pgbaton: "+event, args...)
}

// Close writes what was only counted, and ends the timers.
func (j *Journal) Close() {
	j.mu.Lock()
	j.closed = true
	var events []string
	for event, r := range j.recent {
		r.timer.Stop()
		events = append(events, event)
	}
	j.mu.Unlock()
	for _, event := range events {
		j.settle(event)
	}
}
