//go:build unix

package demo

import (
	"fmt"
	"syscall"
)

const canFreeze = true

// freeze stops the process where it is; it does not notice.
func (w *worker) freeze() error {
	if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze worker %d: %w", w.number, err)
	}
	return nil
}

// wake lets a frozen process go on.
func (w *worker) wake() error {
	if err := w.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("wake worker %d: %w", w.number, err)
	}
	return nil
}
