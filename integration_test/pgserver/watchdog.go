package pgserver

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"
)

// The server has to end with the process that started it, also when that is killed and can do nothing
// any longer. The kernel's own means is no use: Linux sends a parent-death signal when the parent's
// *thread* ends, and Go ends threads as it likes. So a small shell reads from a pipe whose other end only this
// process holds. However this process ends, the kernel closes the pipe, and the shell cleans up.
//
//go:embed watchdog.sh
var watchdogScript string

// containerScript removes the container $1 when its starter dies without a word. testcontainers-go has a
// helper container for that, but not everywhere: it can be switched off, and its image has to be pulled.
const containerScript = `
trap '' HUP INT QUIT TERM
orderly=
while read -r word; do orderly=$word; done
[ -n "$orderly" ] || exec docker rm --force --volumes "$1"
`

type watchdog struct {
	pipe   io.WriteCloser
	exited chan struct{} // closed when the shell has ended
	err    error         // how it ended; set before exited is closed
}

// startWatchdog starts a shell that guards what arg names, as owner. A server's directory is guarded from
// before the server is created.
func startWatchdog(script, arg string, owner *account) (*watchdog, error) {
	cmd := commandAs(context.Background(), owner, "/bin/sh", "-c", script, "pgserver-watchdog", arg)
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

// release tells the watchdog of an orderly end and waits until it has done its part. When ctx ends
// first, that goes on by itself.
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
