package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

// signals takes the signals of this process, from the beginning of a call to its end, and hands them on to the command that runs, if one
// does. A signal to stop that comes before a command has started keeps it from being started:
//
//	signal               | no command runs           | a command runs
//	INT, QUIT, TERM      | halted: none is started   | handed on; halted, so none is started after it
//	HUP                  | halted                    | handed on
//	USR1, USR2           | dropped                   | handed on
//	CONT                 | nothing                   | the command goes on, with the terminal if this process has it
//
// A command that the system is executing at that moment has the signal once it runs. After INT, QUIT, TERM and HUP it is killed if that takes
// long (see await).
//
// That is so once a holder has taken all of them ([signals.hold]). Until then, and in calls that run no command, INT and TERM halt, a second
// one ends the process at once, and the others do what the system has them do. One channel takes them in both times, so none is lost between.
//
// HUP and INT that this process was started to ignore, as nohup does it, stay ignored, here and in the command. Go's runtime does not know
// that of the others: they are heeded.
type signals struct {
	events chan os.Signal
	ended  chan struct{}
	halted chan struct{} // closed by the first signal to stop
	settle chan struct{} // answers to the process's own signal, see barrier

	mu       sync.Mutex
	holds    bool // there is a holder
	process  *supervise.Process
	starting bool           // the system has not executed the command yet
	stop     syscall.Signal // the first signal to stop; 0 for none
}

func takeSignals() *signals {
	s := &signals{
		events: make(chan os.Signal, 64), ended: make(chan struct{}), halted: make(chan struct{}), settle: make(chan struct{}, 1),
	}
	s.notify(os.Interrupt, syscall.SIGTERM)
	go func() {
		defer close(s.ended)
		for sig := range s.events {
			s.take(sig.(syscall.Signal)) // all of os/signal are
		}
	}()
	return s
}

func (s *signals) notify(wanted ...os.Signal) {
	for _, sig := range wanted {
		if !signal.Ignored(sig) {
			signal.Notify(s.events, sig)
		}
	}
}

// hold takes all signals for a holder. The error is that of a signal to stop that has come.
func (s *signals) hold() error {
	s.mu.Lock()
	if s.stop == 0 {
		s.holds = true
		s.notify(handedOn...)
	}
	s.mu.Unlock()
	return s.halt()
}

// end gives the signals back.
func (s *signals) end() {
	signal.Stop(s.events)
	close(s.events)
	<-s.ended
}

func (s *signals) take(sig syscall.Signal) {
	if isBarrier(sig) {
		select {
		case s.settle <- struct{}{}:
		default:
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	running := s.process != nil
	switch {
	case resumes(sig):
		if running {
			s.process.Continue()
		}
		return
	case running:
		s.process.Signal(sig)
	}
	if ends := sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGTERM; s.stop == 0 && (ends || sig == syscall.SIGHUP && (!running || s.starting)) {
		s.stop = sig
		close(s.halted)
		if !s.holds {
			signal.Stop(s.events) // the next one ends the process
		}
	}
}

// haltError means that a signal to stop came.
type haltError struct{ signal syscall.Signal }

func (e *haltError) Error() string { return fmt.Sprintf("stopped by signal %v", e.signal) }

// halt returns the error of a signal to stop, nil if there was none.
func (s *signals) halt() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.halting()
}

// halting is halt for callers that have mu.
func (s *signals) halting() error {
	if s.stop == 0 {
		return nil
	}
	return &haltError{s.stop}
}

// context returns a context that ends with the first signal to stop.
func (s *signals) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	go func() {
		select {
		case <-s.halted:
			cancel(s.halt())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// lostError means that a grant was lost before the command was started.
type lostError struct{ err error }

func (e *lostError) Error() string { return fmt.Sprintf("%v; no command was started", e.err) }

func (e *lostError) Unwrap() error { return e.err }

// errSilent is the loss of a grant whose server has been silent for so long that a command may not live.
var errSilent = errors.New("the server was silent")

// start starts a command for a life that ends when until says, unless a signal to stop has come to this process, or what the command is to run
// under is lost: this process may have stood still since it was granted.
func (s *signals) start(cmd supervise.Command, g grant, until func() time.Time) (*supervise.Process, error) {
	p, err := s.begin(cmd, g, until)
	if err != nil {
		return nil, err
	}
	if err := s.await(p, g, until); err != nil {
		s.finish()
		return nil, err
	}
	s.mu.Lock()
	s.starting = false
	s.mu.Unlock()
	return p, nil
}

// startPatience is how long the system may take to execute a command after a signal to stop.
const startPatience = time.Second

// await waits until the system has executed a command. Where the program is on a network that is dead, that does not happen: the command is killed
// when what it is to run under is lost, when its life ends, and shortly after a signal to stop, which it has as well.
func (s *signals) await(p *supervise.Process, g grant, until func() time.Time) error {
	var tooLate <-chan time.Time
	for halted, lost := s.halted, g.Done(); ; {
		select {
		case <-p.Starting():
			err := p.Started()
			if err == nil || !errors.Is(err, supervise.ErrUnexecuted) {
				return err
			}
			if halted := s.halt(); halted != nil {
				return halted
			}
			if g.Err() != nil {
				return &lostError{g.Err()}
			}
			if !until().After(time.Now()) {
				return &lostError{errSilent}
			}
			return err
		case <-halted:
			halted, tooLate = nil, time.After(startPatience)
		case <-lost:
			lost = nil
			p.Kill()
		case <-tooLate:
			p.Kill()
		}
	}
}

// begin is the first part of start.
func (s *signals) begin(cmd supervise.Command, g grant, until func() time.Time) (*supervise.Process, error) {
	s.barrier()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.halting(); err != nil {
		return nil, err
	}
	if cmd.Life = time.Until(until()); cmd.Life <= cmd.Grace {
		return nil, &lostError{errSilent}
	}
	if err := g.Err(); err != nil {
		return nil, &lostError{err}
	}
	p, err := supervise.Begin(cmd)
	if err != nil {
		return nil, err
	}
	s.process, s.starting = p, true
	return p, nil
}

// finish takes the command away that has ended.
func (s *signals) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process, s.starting = nil, false
}

// barrierTimeout ends a wait for a signal that the system has lost.
const barrierTimeout = time.Second

// barrier returns when every signal that came to this process before the call was taken. The system has it, and go's runtime, take signals
// in the order of their numbers, and the process's own has a greater one than all that are handed on.
func (s *signals) barrier() {
	select {
	case <-s.settle: // of an earlier call, or of a terminal
	default:
	}
	if !sendBarrier() {
		return
	}
	timer := time.NewTimer(barrierTimeout)
	defer timer.Stop()
	select {
	case <-s.settle:
	case <-timer.C:
	}
}

// haltStatus is the exit status of a call that a signal has ended; 0 if err is not about that.
func haltStatus(err error) int {
	var halted *haltError
	if errors.As(err, &halted) {
		return exitSignalled + int(halted.signal)
	}
	return 0
}
