package storm

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// Bench is a [worker.TB] for a program: it keeps what a test would fail with.
type Bench struct {
	name string
	dir  string

	mu       sync.Mutex
	ends     []func()
	failures []string
}

var _ worker.TB = (*Bench)(nil)

// OnBench runs f as a test is run, and returns the failures. Every cleanup has run by then.
func OnBench(name string, f func(b *Bench)) []string {
	dir, err := os.MkdirTemp("", "storm-")
	if err != nil {
		return []string{err.Error()}
	}
	defer os.RemoveAll(dir)
	b := &Bench{name: name, dir: dir}
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
func (b *Bench) alone(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// Helper does nothing.
func (b *Bench) Helper() {}

// Name is what the bench is called.
func (b *Bench) Name() string { return b.name }

// TempDir makes a directory that is removed at the end.
func (b *Bench) TempDir() string {
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		b.Errorf("%v", err)
		b.FailNow()
	}
	return dir
}

// Cleanup has end called at the end, the last one first.
func (b *Bench) Cleanup(end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, end)
}

// Logf writes to standard error.
func (b *Bench) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, b.name+": "+format+"\n", args...)
}

// Errorf keeps a failure.
func (b *Bench) Errorf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = append(b.failures, fmt.Sprintf(format, args...))
}

// FailNow ends the goroutine.
func (b *Bench) FailNow() { runtime.Goexit() }

// Failed reports whether there was a failure.
func (b *Bench) Failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.failures) > 0
}
