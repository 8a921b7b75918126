//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package pipeline

import "syscall"

// peek reads what has arrived at a socket and leaves it there. It does not wait: with nothing there it fails.
func peek(fd uintptr, buf []byte) (int, error) {
	n, _, err := syscall.Recvfrom(int(fd), buf, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n, err
}
