//go:build unix

package command

import (
	"os"
	"syscall"
)

// handedOn are the signals that are taken. The last one is the barrier.
var handedOn = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH,
}

// isBarrier reports whether a signal is the one that the process sends itself. A terminal sends it as well, when its size changes; it
// goes to the command's group by itself.
func isBarrier(sig syscall.Signal) bool { return sig == syscall.SIGWINCH }

func sendBarrier() bool { return syscall.Kill(os.Getpid(), syscall.SIGWINCH) == nil }

func resumes(sig syscall.Signal) bool { return sig == syscall.SIGCONT }
