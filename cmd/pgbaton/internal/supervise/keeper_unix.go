//go:build unix

package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeperName is the name by which a program that was started as a keeper knows it.
const keeperName = "pgbaton-keeper"

// patrol is how often the keeper looks at the clock, which timers may not follow while the machine is suspended.
const patrol = 50 * time.Millisecond

// killEvery is how often KILL is repeated, for processes that were started meanwhile.
const killEvery = 2 * time.Millisecond

// BecomeKeeper does not return if the process was started as a keeper. It is the first call of a program that starts commands.
func BecomeKeeper() {
	if len(os.Args) == 0 || os.Args[0] != keeperName {
		return
	}
	runtime.LockOSThread() // the command dies with the thread that has started it
	os.Exit(keep(os.Args[1:]))
}

// keeper is the state of a keeper's process.
type keeper struct {
	reports *os.File
	group   int          // the command's process and group
	until   int64        // the end of its life
	grace   int64        // before which it gets TERM
	waits   chan waited  // of the command
	orders  chan message // closed when the caller is gone

	status   int
	ended    bool
	expiring bool
	killing  bool

	none    chan struct{} // closed when there is no child
	alone   bool          // none is closed
	refused int           // processes of other users that the last look at all found, if it found no others
}

// waited is what happened to the command.
type waited struct{ status unix.WaitStatus }

// keep is the life of a keeper: it starts the command, watches over it, and returns when nothing of it is left.
func keep(args []string) int {
	const fixed = 6 // arguments before the command's
	if len(args) <= fixed {
		return 1
	}
	numbers := make([]int64, fixed-1)
	for i := range numbers {
		n, err := strconv.ParseInt(args[i], 10, 64)
		if err != nil {
			return 1
		}
		numbers[i] = n
	}
	unix.CloseOnExec(int(numbers[0]))
	unix.CloseOnExec(int(numbers[1]))
	orders := os.NewFile(uintptr(numbers[0]), "orders")
	k := &keeper{
		reports: os.NewFile(uintptr(numbers[1]), "reports"), until: numbers[2], grace: numbers[3],
		waits: make(chan waited, 1), none: make(chan struct{}), orders: make(chan message),
	}
	withstand()
	adopt()
	pid, err := execute(args[fixed-1], args[fixed:], numbers[4] != 0)
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = syscall.EIO
		}
		_ = send(k.reports, reportFailed, int64(errno))
		return 0
	}
	k.group = pid
	_ = send(k.reports, reportStarted, int64(pid))
	go k.wait()
	go func() {
		defer close(k.orders)
		_ = receive(orders, func(m message) bool {
			k.orders <- m
			return false
		})
	}()
	k.watch()
	return 0
}

// withstand has signals not end the keeper. They are caught and not ignored: what is ignored stays so in the command. A signal
// that was ignored before, as by nohup, stays so.
func withstand() {
	caught := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE} {
		if !signal.Ignored(sig) {
			signal.Notify(caught, sig)
		}
	}
	go func() {
		for range caught { // nothing to do: the caller has the same signals, and sends what is meant for the command
		}
	}()
}

// execute starts the command in a group of its own.
func execute(path string, args []string, front bool) (pid int, err error) {
	attr := &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(attr)
	if tty := openTerminal(); tty != nil {
		defer tty.Close()
		attr.Foreground, attr.Ctty = front, int(tty.Fd())
	}
	pid, err = syscall.ForkExec(path, args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attr})
	if err != nil {
		return 0, fmt.Errorf("execute: %w", err)
	}
	return pid, nil
}

// wait takes the exit statuses of all children. On Linux these are all descendants whose parents have ended.
func (k *keeper) wait() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WUNTRACED, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			close(k.none)
			return
		case pid == k.group:
			k.waits <- waited{status}
		}
	}
}

// watch runs the table of the package's comment.
func (k *keeper) watch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	none, orders := k.none, k.orders
	for {
		select {
		case w := <-k.waits:
			k.took(w.status)
		case <-none:
			none, k.alone = nil, true
		case m, open := <-orders:
			if !open {
				orders, k.killing = nil, true
				break
			}
			if !k.killing {
				k.age() // first: an order may be late
			}
			k.obey(m)
		case <-timer.C:
		}
		if !k.killing {
			timer.Reset(k.age())
		}
		if k.killing {
			if left, over := k.killAll(); over {
				_ = send(k.reports, reportGone, int64(k.status), asNumber(k.expiring), int64(left))
				return
			}
			timer.Reset(killEvery)
		}
	}
}

func asNumber(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// took takes what happened to the command.
func (k *keeper) took(status unix.WaitStatus) {
	switch {
	case status.Stopped():
		_ = send(k.reports, reportStopped, int64(status.StopSignal()))
		return
	case status.Signaled():
		k.status = StatusSignalled + int(status.Signal())
	default:
		k.status = status.ExitStatus()
	}
	k.expiring = k.expiring || k.until <= now() // all stood still, and the command was the first that went on
	k.ended, k.killing = true, true
}

func (k *keeper) obey(m message) {
	switch m.word {
	case orderSignal:
		if !k.ended {
			k.signal(syscall.Signal(m.number(0)))
		}
	case orderLive:
		if !k.expiring {
			k.until = m.number(0)
		}
	case orderKill:
		k.killing = true
	}
}

// age looks at the clock, and returns when to look again.
func (k *keeper) age() time.Duration {
	left := k.until - now()
	switch {
	case left <= 0:
		k.expiring, k.killing = true, true
		return 0
	case k.expiring:
		return min(patrol, time.Duration(left))
	case left > k.grace:
		return min(patrol, time.Duration(left-k.grace))
	}
	k.expiring = true
	k.signal(unix.SIGTERM)
	return min(patrol, time.Duration(left))
}

// signal sends a signal to the command's group. A process that is stopped takes none before it goes on, so those that are to end it are
// followed by CONT.
func (k *keeper) signal(sig syscall.Signal) {
	_ = unix.Kill(-k.group, sig)
	switch sig {
	case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM:
		_ = unix.Kill(-k.group, unix.SIGCONT)
	}
}

// killAll kills the command's group and all children, and reports whether that was the end: no process is left, or only processes of
// other users, which cannot be killed; left is how many. A look at the list of processes misses one that forks and ends meanwhile, so
// nobody is there only when the kernel says that there is no child; and others' processes are all that is left when two looks
// running have found the same.
func (k *keeper) killAll() (left int, over bool) {
	refused := 0
	switch err := unix.Kill(-k.group, unix.SIGKILL); err {
	case nil:
		left = 1
	case unix.EPERM:
		left, refused = 1, 1
	}
	there, denied := killAdopted()
	left, refused = left+there, refused+denied
	if left != refused {
		refused = 0
	}
	again := refused > 0 && refused == k.refused
	k.refused = refused
	return left, k.ended && (again || k.alone && left == 0)
}
