package command

import (
	"os"
	"syscall"
)

// handedOn are the signals that are taken.
var handedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM}

func isBarrier(syscall.Signal) bool { return false }

func sendBarrier() bool { return false }

func resumes(syscall.Signal) bool { return false }
