package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// inForeground reports whether this process and its command are the terminal's foreground job.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
