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
	kin    kin

	writing sync.Mutex // of orders: a keeper that is stopped takes none when its pipe is full
	orders  *os.File

	mu         sync.Mutex
	reported   bool  // the keeper has said what became of the start, or is gone
	abandoned  bool  // the command was killed before that
	group      int   // 0 before the command is executed, and when it is gone
	until      int64 // the end of the command's life
	overdue    bool  // the command was killed at that time
	foreground bool  // the command's group was given the terminal, and has not given it back
	continued  int   // how often the command was told to go on
}

// orderTimeout bounds the time that an order may take. A keeper that reads none is stopped, and has work for as long as the pipe is full.
const orderTimeout = time.Second

// Begin has a keeper start a command, and does not wait until the system has executed it: where the program is on a network that is dead, that
// can take for ever. The command's life counts from now on.
func Begin(cmd Command) (*Process, error) {
	p := &Process{started: make(chan struct{}), done: make(chan struct{})}
	p.system.foreground = isTerminal(cmd.Stdin) && isTerminal(cmd.Stdout) && inForeground()
	reports, err := p.system.startKeeper(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the keeper of the command: %w", err)
	}
	go p.listen(reports, cmd.Args[0])
	go p.watch()
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
	s.until = now() + int64(cmd.Life)
	args := append([]string{
		keeperName, strconv.Itoa(in), strconv.Itoa(out), strconv.FormatInt(s.until, 10), strconv.FormatInt(int64(cmd.Grace), 10), tty, cmd.Path,
	}, cmd.Args...)
	s.kin = meet()
	s.keeper, err = os.StartProcess(program, args, &os.ProcAttr{
		Env: cmd.Env, Files: []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fail(err)
	}
	keepers[s.keeper.Pid] = true
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
func (p *Process) listen(reports *os.File, name string) {
	gone := false
	var failed error
	err := receive(reports, func(m message) bool {
		switch m.word {
		case reportStarted:
			p.system.begun(int(m.number(0)))
			close(p.started)
		case reportFailed:
			failed, gone = syscall.Errno(m.number(0)), true
		case reportStopped:
			p.system.stopped(syscall.Signal(m.number(0)))
		case reportGone:
			p.result = Result{Status: int(m.number(0)), Expired: m.number(1) != 0 || p.system.isOverdue(), Left: int(m.number(2))}
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
	}
	p.result.Left += p.system.end(!gone)
	close(p.done)
	select {
	case <-p.started:
		return
	default:
	}
	switch {
	case failed != nil:
	case p.system.wasAbandoned():
		failed = ErrUnexecuted
	default:
		failed = p.result.Broken
	}
	p.failed = &RunError{Name: name, Err: failed}
	close(p.started)
}

// begun notes that the command is executed.
func (s *system) begun(group int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group, s.reported = group, true
}

func (s *system) wasAbandoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}

// end takes leave of the keeper. If it is broken, it is killed, and what it has left after it; end returns how many processes of other users
// are left then.
func (s *system) end(broken bool) (left int) {
	if broken {
		_ = s.keeper.Kill()
	}
	_, _ = s.keeper.Wait() // its children have another parent then
	starting.Lock()
	delete(keepers, s.keeper.Pid)
	starting.Unlock()
	s.writing.Lock()
	s.orders.Close()
	s.writing.Unlock()
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	if broken {
		left = s.kin.killOrphans(group)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.foreground {
		takeTerminalBack(group)
	}
	s.group, s.foreground = 0, false
	return left
}

// stopped does what is to be done when the command was stopped. If it had the terminal, the caller stops as well, so that the shell has it.
// If it has not, but wants it, it gets it when the caller has it; else the caller stops, and the shell says so. Where nobody could have the
// caller go on, as without a shell in ssh -t, the kernel does not stop it; nor does it leave a group stopped for ever, and the command fares
// as that group: it goes on, or hangs up if it wants a terminal that it cannot have.
func (s *system) stopped(sig syscall.Signal) {
	s.mu.Lock()
	had, group, continued := s.foreground, s.group, s.continued
	s.foreground = false
	s.mu.Unlock()
	wants := sig == unix.SIGTTIN || sig == unix.SIGTTOU
	switch {
	case had:
		takeTerminalBack(group)
	case wants && inForeground():
		s.proceed()
		return
	case !wants:
		return
	}
	switch stopSelf(); {
	case s.wasContinued(continued):
	case had:
		s.proceed()
	default:
		s.signal(syscall.SIGHUP)
	}
}

func (s *system) wasContinued(before int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.continued != before
}

func (s *system) proceed() {
	lend := inForeground()
	s.mu.Lock()
	group := s.group
	s.continued++
	s.foreground = s.foreground || lend && group != 0
	s.mu.Unlock()
	if group == 0 {
		return
	}
	if lend {
		giveTerminal(group)
	}
	s.signal(syscall.SIGCONT)
}

func (s *system) signal(sig syscall.Signal) { s.order(orderSignal, int64(sig)) }

func (s *system) extend(until time.Time) {
	end := now() + int64(time.Until(until))
	if s.age() { // no later word saves a command whose life is over
		return
	}
	s.mu.Lock()
	s.until = end
	s.mu.Unlock()
	s.order(orderLive, end)
}

// watch counts the command's life beside the keeper, which may be stopped.
func (p *Process) watch() {
	ticker := time.NewTicker(patrol)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
			if p.system.age() {
				p.system.kill()
			}
		}
	}
}

// age reports whether the command's life is over.
func (s *system) age() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overdue = s.overdue || s.until <= now()
	return s.overdue
}

func (s *system) isOverdue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overdue
}

// kill has the keeper kill all that it keeps. One that is stopped goes on for that, and the group does not wait for it. A keeper that is starting
// the command takes no orders before the system has executed that: it is killed itself, and the kernel kills the command after it before the
// command's first instruction. Where the kernel does not do that, the order waits for the keeper.
func (s *system) kill() {
	s.mu.Lock()
	if s.group != 0 {
		_ = unix.Kill(-s.group, unix.SIGKILL)
	}
	abandon := !s.reported && dieTogether
	s.abandoned = s.abandoned || !s.reported
	s.mu.Unlock()
	if abandon {
		_ = s.keeper.Kill()
		return
	}
	s.order(orderKill)
	_ = s.keeper.Signal(unix.SIGCONT)
}

// order sends an order. A keeper that is gone needs none, and one that takes none goes by what it has.
func (s *system) order(word string, numbers ...int64) {
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.orders.SetWriteDeadline(time.Now().Add(orderTimeout))
	_ = send(s.orders, word, numbers...)
}
