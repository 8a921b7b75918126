package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// The exit statuses of shells for what could not be run, and their base for what a signal has ended.
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
	StatusSignalled     = 128
)

// Command is what is to be run.
type Command struct {
	Path string   // of the program; see [Find]
	Args []string // the first is the program's name
	Env  []string

	Stdin, Stdout, Stderr *os.File

	Life  time.Duration // how long it may run before the first Extend
	Grace time.Duration // how long before the end of its life it gets TERM
}

// Result is how a command has ended.
type Result struct {
	Status  int   // its own, or 128 and the number of the signal that has ended it
	Expired bool  // its life was not extended in time, and it was stopped for that
	Left    int   // processes of other users that could not be killed
	Broken  error // the keeper died; the command was killed, and its status is not known
}

// RunError means that a command was not executed.
type RunError struct {
	Name string
	Err  error
}

func (e *RunError) Error() string { return fmt.Sprintf("cannot run %s: %v", e.Name, e.Err) }

func (e *RunError) Unwrap() error { return e.Err }

// Status is the exit status that shells give for the error.
func (e *RunError) Status() int {
	if errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, exec.ErrNotFound) {
		return StatusNotFound
	}
	return StatusNotExecutable
}

// Find looks for a program as a shell does. The error is a [*RunError].
func Find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) { // PATH says so, as for a shell
		err = nil
	}
	if err != nil {
		var reason *exec.Error
		if errors.As(err, &reason) {
			err = reason.Err
		}
		return "", &RunError{Name: name, Err: err}
	}
	return path, nil
}

// ErrUnexecuted means that a command was killed before the system had executed it.
var ErrUnexecuted = errors.New("the system has not executed it in time")

// Process is a command that was started, or is being started.
type Process struct {
	started chan struct{}
	failed  error // why the command was not executed; valid when started is closed
	done    chan struct{}
	result  Result // valid when done is closed
	system  system
}

// Starting is closed when the system has executed the command, and when it was not executed and nothing of it is left.
func (p *Process) Starting() <-chan struct{} { return p.started }

// Started waits for that, and returns why the command was not executed, a [*RunError]; nil if it was. The error matches [ErrUnexecuted] if the
// command was killed before.
func (p *Process) Started() error {
	<-p.started
	return p.failed
}

// Done is closed when no process of the command is left.
func (p *Process) Done() <-chan struct{} { return p.done }

// Result waits until no process of the command is left, and returns how the command has ended.
func (p *Process) Result() Result {
	<-p.done
	return p.result
}

// Signal sends a signal to the command's group.
func (p *Process) Signal(sig syscall.Signal) { p.system.signal(sig) }

// Extend sets the end of the command's life. It does not bring back a command that was told to stop.
func (p *Process) Extend(until time.Time) { p.system.extend(until) }

// Kill kills the command, its group and its descendants.
func (p *Process) Kill() { p.system.kill() }

// Continue gives the command the terminal if the caller has it, and has it go on if it was stopped: for a caller that goes on itself.
func (p *Process) Continue() { p.system.proceed() }
