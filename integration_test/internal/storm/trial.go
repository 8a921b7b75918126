package storm

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// Trial is a [worker.TB] for a program: it keeps what a test would fail with.
type Trial struct {
	name string
	dir  string

	mu       sync.Mutex
	ends     []func()
	failures []string
}

var _ worker.TB = (*Trial)(nil)

// Attempt runs f as a test is run, and returns the failures. Every cleanup has run by then.
func Attempt(name string, f func(b *Trial)) []string {
	dir, err := os.MkdirTemp("", "storm-")
	if err != nil {
		return []string{err.Error()}
	}
	defer os.RemoveAll(dir)
	b := &Trial{name: name, dir: dir}
	b.alone(func() { f(b) })
	for {
		b.mu.Lock()
		last := len(b.ends) - 1
		if last < 0 {
			b.mu.Unlock()
			return b.failures
		}
		end := b.ends[last]
		b.ends = slices.Delete(b.ends, last, last+1)
		b.mu.Unlock()
		b.alone(end)
	}
}

// alone runs f on a goroutine of its own, which FailNow may end.
func (b *Trial) alone(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// Helper does nothing.
func (b *Trial) Helper() {}

// Name is what the bench is called.
func (b *Trial) Name() string { return b.name }

// TempDir makes a directory that is removed at the end.
func (b *Trial) TempDir() string {
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		b.Errorf("%v", err)
		b.FailNow()
	}
	return dir
}

// Cleanup has end called at the end, the last one first.
func (b *Trial) Cleanup(end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, end)
}

// Logf writes to standard error.
func (b *Trial) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, b.name+": "+format+"\n", args...)
}

// Errorf keeps a failure.
func (b *Trial) Errorf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = append(b.failures, fmt.Sprintf(format, args...))
}

// FailNow ends the goroutine.
func (b *Trial) FailNow() { runtime.Goexit() }

// Failed reports whether there was a failure.
func (b *Trial) Failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.failures) > 0
}
