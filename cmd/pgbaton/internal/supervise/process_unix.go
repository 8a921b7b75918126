//go:build unix

package supervise

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// system is the caller's side of a keeper.
type system struct {
	keeper *os.Process
	orders *os.File

	started chan error // the keeper's first report, nil if the command is executed

	mu         sync.Mutex
	group      int // 0 before the command is executed, and when it is gone
	foreground bool
}

// orderTimeout bounds the time that an order may take. A keeper that reads none is stopped, and has work for as long as the pipe is full.
const orderTimeout = time.Second

// Start starts a command. The error is a [*RunError] if the system does not execute it.
func Start(cmd Command) (*Process, error) {
	p := &Process{done: make(chan struct{})}
	p.system.started = make(chan error, 1)
	p.system.foreground = inForeground()
	reports, err := p.system.startKeeper(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the keeper of the command: %w", err)
	}
	go p.listen(reports)
	if err := <-p.system.started; err != nil {
		<-p.done
		return nil, &RunError{Name: cmd.Args[0], Err: err}
	}
	return p, nil
}

// starting is held while a keeper's ends of its pipes can be inherited, so that no other keeper has them.
var starting sync.Mutex

// startKeeper starts the keeper and returns the end of the pipe on which it reports.
func (s *system) startKeeper(cmd Command) (reports *os.File, err error) {
	program, err := ownProgram()
	if err != nil {
		return nil, err
	}
	ordersRead, ordersWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersRead.Close()
	reportsRead, reportsWrite, err := os.Pipe()
	if err != nil {
		ordersWrite.Close()
		return nil, err
	}
	defer reportsWrite.Close()
	fail := func(err error) (*os.File, error) {
		ordersWrite.Close()
		reportsRead.Close()
		return nil, err
	}

	starting.Lock()
	defer starting.Unlock()
	// The keeper gets its ends under free numbers, so that files that the caller was given under low ones are the command's.
	in, err1 := inheritable(ordersRead)
	out, err2 := inheritable(reportsWrite)
	defer closeAll(in, out)
	if err := errors.Join(err1, err2); err != nil {
		return fail(err)
	}
	tty := "0"
	if s.foreground {
		tty = "1"
	}
	life := now() + int64(cmd.Life)
	args := append([]string{
		keeperName, strconv.Itoa(in), strconv.Itoa(out), strconv.FormatInt(life, 10), strconv.FormatInt(int64(cmd.Grace), 10), tty, cmd.Path,
	}, cmd.Args...)
	s.keeper, err = os.StartProcess(program, args, &os.ProcAttr{
		Env: cmd.Env, Files: []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fail(err)
	}
	s.orders = ordersWrite
	return reportsRead, nil
}

// inheritable returns a copy of a file that children inherit, with a number that nobody has chosen.
func inheritable(f *os.File) (fd int, err error) {
	const least = 10 // shells let people choose those below
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	var failed error
	if err := raw.Control(func(from uintptr) { fd, failed = unix.FcntlInt(from, unix.F_DUPFD, least) }); err != nil {
		return -1, err
	}
	return fd, failed
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// listen takes the keeper's reports until it is gone.
func (p *Process) listen(reports *os.File) {
	gone := false
	first := true
	err := receive(reports, func(m message) bool {
		switch m.word {
		case reportStarted:
			p.system.setGroup(int(m.number(0)))
			p.system.started <- nil
			first = false
		case reportFailed:
			p.system.started <- syscall.Errno(m.number(0))
			first, gone = false, true
		case reportStopped:
			p.system.stopped()
		case reportGone:
			p.result = Result{Status: int(m.number(0)), Expired: m.number(1) != 0, Left: int(m.number(2))}
			gone = true
		}
		return gone
	})
	reports.Close()
	if !gone {
		if errors.Is(err, io.EOF) {
			err = errors.New("the keeper of the command was killed")
		}
		p.result = Result{Status: StatusSignalled + int(unix.SIGKILL), Broken: err}
		p.system.killGroup()
	}
	p.system.end()
	if first {
		p.system.started <- p.result.Broken
	}
	close(p.done)
}

func (s *system) setGroup(group int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group = group
}

// end takes leave of the keeper.
func (s *system) end() {
	_, _ = s.keeper.Wait()
	s.orders.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.foreground && s.group != 0 {
		giveTerminal(unix.Getpgrp())
	}
	s.group = 0
}

// killGroup kills the command's group without a keeper, until nobody is in it.
func (s *system) killGroup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.group != 0 && unix.Kill(-s.group, unix.SIGKILL) == nil {
		time.Sleep(time.Millisecond) // the kernel tells nobody but a parent when a process has ended
	}
}

// stopped has the caller stop as well when the terminal has stopped the command, so that the shell has the terminal.
func (s *system) stopped() {
	if !s.foreground {
		return
	}
	giveTerminal(unix.Getpgrp())
	_ = unix.Kill(0, unix.SIGTSTP)
}

func (s *system) proceed() {
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	if group == 0 {
		return
	}
	if inForeground() {
		s.mu.Lock()
		s.foreground = true
		s.mu.Unlock()
		giveTerminal(group)
	}
	s.signal(syscall.SIGCONT)
}

func (s *system) signal(sig syscall.Signal) { s.order(orderSignal, int64(sig)) }

func (s *system) extend(until time.Time) { s.order(orderLive, now()+int64(time.Until(until))) }

func (s *system) kill() { s.order(orderKill) }

// order sends an order. A keeper that is gone needs none, and one that takes none goes by what it has.
func (s *system) order(word string, numbers ...int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.orders.SetWriteDeadline(time.Now().Add(orderTimeout))
	_ = send(s.orders, word, numbers...)
}
