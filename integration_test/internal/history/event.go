// Package history records what processes did with locks, and checks afterwards that it was right.
//
// Each process appends its events to a file of its own, one JSON object a line, one write an event, so a
// process that is killed leaves everything that it had seen. The stamps are CLOCK_MONOTONIC, which all
// processes of a machine share.
package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Now is CLOCK_MONOTONIC in nanoseconds.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux and macOS have it
	}
	return ts.Nano()
}

// Kinds of events. Every acquire has one Call and, if its process lived, one Granted or Refused. A grant
// has a Release (called) with one Released or Failed, or a Lost, or ends with its process.
const (
	Call     = "call"
	Granted  = "granted"
	Refused  = "refused"
	Release  = "release"
	Released = "released" // Release returned nil
	Failed   = "failed"   // Release said that the lock had been lost
	Lost     = "lost"     // the holder was told
)

// Kinds of events that are no grant's.
const (
	Stood = "stood" // the process stood still, from From to At
	Ran   = "ran"   // a run of Key by Once began; the call began at From
)

// Modes of a lock.
const (
	Exclusive = "x"
	Shared    = "s"
)

// Event is one line of a log.
type Event struct {
	At    int64  `json:"at"`
	Kind  string `json:"kind"`
	Op    int64  `json:"op"` // the acquire in its process
	From  int64  `json:"from,omitempty"`
	Key   string `json:"key,omitempty"`
	Mode  string `json:"mode,omitempty"`
	N     int    `json:"n,omitempty"` // of permits
	Token int64  `json:"token,omitempty"`
	Err   string `json:"err,omitempty"`
}

// Log is a process's log. It is safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	file *os.File
	ops  int64
}

// Create makes a log file.
func Create(path string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &Log{file: file}, nil
}

// Op gives out the number of an acquire.
func (l *Log) Op() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops++
	return l.ops
}

// Append writes an event. A nil log keeps nothing.
func (l *Log) Append(e Event) {
	if l == nil {
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // plain fields
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		panic(fmt.Sprintf("history: %v", err)) // a history with holes proves nothing
	}
}

// Read reads a log. A last line that was cut off by the death of its process is left out.
func Read(path string) ([]Event, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var events []Event
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			if !lines.Scan() {
				break
			}
			return nil, fmt.Errorf("history: %s: %w", path, err)
		}
		events = append(events, e)
	}
	return events, lines.Err()
}

// Follower reads a log while its process writes it.
type Follower struct {
	path string
	read int64 // bytes, up to the end of a line
}

// Follow returns a follower of a log, which need not be there yet.
func Follow(path string) *Follower { return &Follower{path: path} }

// More returns the events since the last call.
func (f *Follower) More() ([]Event, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err = file.Seek(f.read, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	f.read += int64(len(text))
	var events []Event
	for line := range bytes.Lines(text) {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("history: %s: %w", f.path, err)
		}
		events = append(events, e)
	}
	return events, nil
}
