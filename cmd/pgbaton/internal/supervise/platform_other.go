//go:build unix && !linux

package supervise

import (
	"os"
	"syscall"
	"time"

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

const dieTogether = false

func killAdopted() (there, refused int) { return 0, 0 }

type kin struct{}

var keepers = map[int]bool{}

func meet() kin { return kin{} }

// burial is how long the system may take to bury processes that were killed. Where this process is the first one, nobody does it.
const burial = time.Second

// killOrphans kills the group of a keeper that was killed. The kernel tells nobody but a parent when a process has ended.
func (kin) killOrphans(group int) (left int) {
	for end := time.Now().Add(burial); group != 0 && unix.Kill(-group, unix.SIGKILL) == nil && time.Now().Before(end); {
		time.Sleep(killEvery)
	}
	return 0
}
