package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
)

// relay hands signals to the command. Until that runs, a signal ends the preparations.
type relay struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	process *os.Process // nil until the command runs
	early   []os.Signal // came before that
}

// deliver passes one signal on. The terminal gives Ctrl-C to every process in front of it, the command
// among them; passing that on would be a second one, which many programs take for "at once".
func (r *relay) deliver(sig os.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fromTerminal := (sig == syscall.SIGINT || sig == syscall.SIGQUIT) && inForeground()
	switch {
	case r.process == nil:
		r.early = append(r.early, sig)
		r.cancel(fmt.Errorf("ended by signal: %v", sig))
	case !fromTerminal:
		_ = r.process.Signal(sig) // fails only when it has just ended
	}
}

// attach names the process of the command, and hands it what came while it was being started.
func (r *relay) attach(process *os.Process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.process = process
	for _, sig := range r.early {
		_ = process.Signal(sig)
	}
}
