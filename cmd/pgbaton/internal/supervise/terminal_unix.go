//go:build unix

package supervise

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal opens the terminal that this process belongs to; nil if there is none.
func openTerminal() *os.File {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return tty
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// inForeground reports whether this process's group has the terminal.
func inForeground() bool {
	tty := openTerminal()
	if tty == nil {
		return false
	}
	defer tty.Close()
	return foreground(tty) == unix.Getpgrp()
}

func foreground(tty *os.File) int {
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return 0
	}
	return group
}

// giveTerminal makes a group the terminal's foreground. A process in the background that does so would be stopped, so the signal
// for that is ignored meanwhile.
func giveTerminal(group int) {
	tty := openTerminal()
	if tty == nil {
		return
	}
	defer tty.Close()
	signal.Ignore(unix.SIGTTOU)
	defer signal.Reset(unix.SIGTTOU)
	_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, group) // a terminal that is gone needs nobody
}

// takeTerminalBack makes this process's group the terminal's foreground, if a command's group is that: the shell may have given the
// terminal to others meanwhile. A group that is gone was the command's, or one that the command had made.
func takeTerminalBack(group int) {
	tty := openTerminal()
	if tty == nil {
		return
	}
	front := foreground(tty)
	tty.Close()
	if front != 0 && (front == group || unix.Kill(-front, 0) == unix.ESRCH) {
		giveTerminal(unix.Getpgrp())
	}
}

// stopDelay is how long the threads of a process take to stop after one has taken the signal, at the most.
const stopDelay = 20 * time.Millisecond

// stopSelf stops this process's group as the terminal does. It returns when the group goes on, or at once when the kernel does not stop it,
// because nobody is there who could have it go on. The second signal is taken after the first, whose number is lower.
func stopSelf() {
	taken := make(chan os.Signal, 1)
	signal.Notify(taken, unix.SIGWINCH)
	defer signal.Stop(taken)
	_ = unix.Kill(0, unix.SIGTSTP)
	_ = unix.Kill(unix.Getpid(), unix.SIGWINCH)
	<-taken
	time.Sleep(stopDelay)
}
