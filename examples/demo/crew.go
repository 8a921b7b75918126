package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/cli"
)

// crew is a set of worker processes. Each is this very program, started again.
type crew struct {
	database string

	ctx    context.Context // ends with the crew; its end kills the processes
	cancel context.CancelFunc
	ended  sync.WaitGroup
	events chan event
}

// worker is one process of a crew.
type worker struct {
	number int
	over   bool // it is killed or done: what it still says is of no interest
	cmd    *exec.Cmd
	input  io.WriteCloser
	stderr bytes.Buffer // read only after the process has ended
}

// event is a message of a worker, or the end of its process.
type event struct {
	message

	worker *worker
	at     time.Time
	gone   bool
	exit   error // how the process ended, if gone
}

func newCrew(ctx context.Context, database string) *crew {
	ctx, cancel := context.WithCancel(ctx)
	return &crew{database: database, ctx: ctx, cancel: cancel, events: make(chan event, 64)}
}

// disband kills the workers that still run, and waits for them.
func (c *crew) disband() {
	c.cancel()
	c.ended.Wait()
}

// start starts a worker. The database goes to it by the environment: arguments are for everybody to see.
func (c *crew) start(number int, j job) (*worker, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	w := &worker{number: number}
	w.cmd = exec.CommandContext(c.ctx, program, WorkerCommand) //nolint:gosec // it is this program
	w.cmd.Env = append(os.Environ(), cli.DatabaseVariable+"="+c.database)
	w.cmd.Stderr = &w.stderr
	if w.input, err = w.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	output, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	c.ended.Go(func() { c.listen(w, output) })
	if err := json.NewEncoder(w.input).Encode(j); err != nil {
		return nil, fmt.Errorf("give worker %d its job: %w", number, err)
	}
	return w, nil
}

// listen passes on what a worker says, until its process has ended.
func (c *crew) listen(w *worker, output io.Reader) {
	decoder := json.NewDecoder(output)
	for {
		ev := event{worker: w}
		if decoder.Decode(&ev.message) != nil {
			break
		}
		ev.at = time.Now()
		c.send(ev)
	}
	_, _ = io.Copy(io.Discard, output)
	err := w.cmd.Wait()
	c.send(event{worker: w, at: time.Now(), gone: true, exit: err})
}

func (c *crew) send(ev event) {
	select {
	case c.events <- ev:
	case <-c.ctx.Done():
	}
}

// goAhead lets a worker go on that waits to be told.
func (w *worker) goAhead() error {
	if _, err := io.WriteString(w.input, "go\n"); err != nil {
		return fmt.Errorf("let worker %d go on: %w", w.number, err)
	}
	return nil
}

// startWaiting starts a worker and returns when it waits for its lock.
func (c *crew) startWaiting(number int, j job) (*worker, error) {
	w, err := c.start(number, j)
	if err != nil {
		return nil, err
	}
	if _, err := c.await(eventReady); err != nil {
		return nil, err
	}
	if err := w.goAhead(); err != nil {
		return nil, err
	}
	_, err = c.await(eventWaiting)
	return w, err
}

// kill ends the process as SIGKILL does: nothing of it runs any longer, not even a clean-up.
func (w *worker) kill() error {
	w.over = true
	if err := w.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill worker %d: %w", w.number, err)
	}
	return nil
}

// patience is how long the workers may say nothing. It is well above the time after which a server frees
// even the locks of a machine that has gone silent.
const patience = 30 * time.Second

var errSilence = fmt.Errorf("the workers said nothing for %v", patience)

// nextWithin waits for an event of a worker that still matters, or returns errSilence.
func (c *crew) nextWithin(d time.Duration) (event, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case ev := <-c.events:
			if !ev.worker.over {
				return ev, nil
			}
		case <-timer.C:
			return event{}, errSilence
		case <-c.ctx.Done():
			return event{}, context.Cause(c.ctx)
		}
	}
}

func (c *crew) next() (event, error) { return c.nextWithin(patience) }

// await waits for the next event, which must be the one given.
func (c *crew) await(what string) (event, error) {
	ev, err := c.next()
	if err == nil && ev.Event != what {
		err = ev.surprise(what)
	}
	return ev, err
}

// surprise is the error that an event represents when another one was due.
func (ev event) surprise(due string) error {
	switch {
	case ev.Event == eventFailed:
		return fmt.Errorf("worker %d: %s", ev.worker.number, ev.Error)
	case !ev.gone:
		return fmt.Errorf("worker %d says %q when %q is due", ev.worker.number, ev.Event, due)
	}
	reason := strings.TrimSpace(ev.worker.stderr.String())
	if reason == "" {
		reason = fmt.Sprint(ev.exit)
	}
	return fmt.Errorf("worker %d ended too early: %s", ev.worker.number, reason)
}
