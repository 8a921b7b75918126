//go:build unix

package supervise

import (
	"os"
	"os/signal"

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
