package supervise

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownProgram is the caller's program, also after its file was replaced.
func ownProgram() (string, error) { return "/proc/self/exe", nil }

// now is the clock that all processes share. It goes on while the machine is suspended.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("supervise: the system has no clock: " + err.Error())
	}
	return t.Nano()
}

// adopt makes this process the parent of descendants whose parents end.
func adopt() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// dieWithParent has the kernel kill the command when the keeper's thread ends.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// dieTogether says that the command does not outlive its keeper.
const dieTogether = true

// killAdopted kills this process's children, and returns how many were there and how many could not be killed. Children
// of children come to this process when their parents are gone.
func killAdopted() (there, refused int) {
	for _, pid := range children() {
		there++
		if err := unix.Kill(pid, unix.SIGKILL); err == unix.EPERM {
			refused++
		}
	}
	return there, refused
}

// children returns the processes whose parent is this one, without those that have ended.
func children() (living []int) {
	for pid, state := range offspring() {
		if state != zombie {
			living = append(living, pid)
		}
	}
	return living
}

const zombie = "Z"

// offspring returns the processes whose parent is this one, and their states.
func offspring() map[int]string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	self := os.Getpid()
	found := map[int]string{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if parent, state := parentOf(pid); parent == self {
			found[pid] = state
		}
	}
	return found
}

// parentOf returns a process's parent and its state; 0 if it is gone. The name before them is in parentheses, and may have any.
func parentOf(pid int) (parent int, state string) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, ""
	}
	_, rest, found := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 2 {
		return 0, ""
	}
	parent, _ = strconv.Atoi(fields[1])
	return parent, fields[0]
}
