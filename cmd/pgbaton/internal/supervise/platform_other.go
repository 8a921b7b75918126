//go:build unix && !linux

package supervise

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownProgram is the caller's program.
func ownProgram() (string, error) { return os.Executable() }

// now is the clock that all processes share.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("supervise: the system has no clock: " + err.Error())
	}
	return t.Nano()
}

// Orphans go to the first process of the system, and the kernel kills nobody on a parent's death.
func adopt() {}

func dieWithParent(*syscall.SysProcAttr) {}

func killAdopted() (there, refused int) { return 0, 0 }
