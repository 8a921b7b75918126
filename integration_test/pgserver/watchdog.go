package pgserver

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"
)

// The server has to end with the process that started it, also when that is killed and can do nothing
// any more. The kernel's own means is no use: Linux sends a parent-death signal when the parent's
// *thread* ends, and Go ends threads as it likes. So a small shell reads from a pipe whose other end only this
// process holds. However this process ends, the kernel closes the pipe, and the shell cleans up.
//
//go:embed watchdog.sh
var watchdogScript string

type watchdog struct {
	pipe   io.WriteCloser
	exited chan struct{} // closed when the shell has ended
	err    error         // how it ended; set before exited is closed
}

// startWatchdog guards the server in dir from before it is created.
func startWatchdog(dir string, owner *account) (*watchdog, error) {
	cmd := commandAs(context.Background(), owner, "/bin/sh", "-c", watchdogScript, "pgserver-watchdog", dir)
	cmd.Dir = "/"
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("pgserver: start the watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("pgserver: start the watchdog: %w", err)
	}
	w := &watchdog{pipe: pipe, exited: make(chan struct{})}
	go w.wait(cmd)
	return w, nil
}

func (w *watchdog) wait(cmd *exec.Cmd) {
	defer close(w.exited)
	w.err = cmd.Wait()
}

// release has the watchdog stop the server and remove its directory, and waits until it has. When ctx
// ends first, that goes on by itself.
func (w *watchdog) release(ctx context.Context) error {
	_, err := io.WriteString(w.pipe, "stop\n")
	_ = w.pipe.Close()
	if err != nil {
		return fmt.Errorf("pgserver: stop the server: %w", err)
	}
	select {
	case <-w.exited:
		if w.err != nil {
			return fmt.Errorf("pgserver: stop the server: %w", w.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pgserver: wait for the server's end: %w", context.Cause(ctx))
	}
}
