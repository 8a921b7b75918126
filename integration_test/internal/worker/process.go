package worker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// TB is what a worker needs of a test: a *testing.T, or what a program has in its place.
type TB interface {
	Helper()
	Name() string
	TempDir() string
	Cleanup(end func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	FailNow()
	Failed() bool
}

// Process is a worker as its parent sees it.
type Process struct {
	tb     TB
	number int
	log    string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr *os.File

	mu     sync.Mutex
	last   int
	calls  map[int]*Call
	ended  chan struct{} // its output is closed
	killed int64         // when, 0 if it was not
}

var numbers = struct {
	sync.Mutex
	last int
}{}

// Start starts a worker. It ends with the test, which then fails if the worker left goroutines behind, had a
// data race or died of something else than the test's own doing.
func Start(tb TB) *Process {
	tb.Helper()
	numbers.Lock()
	numbers.last++
	number := numbers.last
	numbers.Unlock()
	p := &Process{
		tb: tb, number: number, log: filepath.Join(tb.TempDir(), "history.jsonl"),
		calls: map[int]*Call{}, ended: make(chan struct{}),
	}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envLog+"="+p.log, "GORACE=atexit_sleep_ms=10") // it sleeps a second otherwise
	var err error
	p.stderr, err = os.Create(filepath.Join(filepath.Dir(p.log), "stderr.txt"))
	require.NoError(tb, err)
	p.cmd.Stderr = p.stderr
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(tb, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, p.cmd.Start())
	go p.listen(stdout)
	tb.Cleanup(p.stop)
	return p
}

func (p *Process) listen(stdout io.Reader) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(p.ended)
		for _, call := range p.calls {
			close(call.settled)
		}
	}()
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var a Answer
		if json.Unmarshal(line, &a) != nil {
			continue // not ours
		}
		p.mu.Lock()
		call := p.calls[a.ID]
		delete(p.calls, a.ID)
		p.mu.Unlock()
		if call != nil {
			call.answer <- a
			close(call.settled)
		}
	}
}

// Call is a command under way.
type Call struct {
	process *Process
	cmd     Command
	answer  chan Answer
	settled chan struct{}
}

// Begin sends a command.
func (p *Process) Begin(cmd Command) *Call {
	p.tb.Helper()
	call := &Call{process: p, cmd: cmd, answer: make(chan Answer, 1), settled: make(chan struct{})}
	p.mu.Lock()
	p.last++
	cmd.ID = p.last
	p.calls[cmd.ID] = call
	p.mu.Unlock()
	line, err := json.Marshal(cmd)
	require.NoError(p.tb, err)
	_, err = p.stdin.Write(append(line, '\n'))
	require.NoError(p.tb, err)
	return call
}

// Process is the one that the command was sent to.
func (c *Call) Process() *Process { return c.process }

// As is the name under which the process keeps what it acquires.
func (c *Call) As() string { return c.cmd.As }

// Settled is closed when the command was answered, or never will be.
func (c *Call) Settled() <-chan struct{} { return c.settled }

// Wait waits for the answer, which must not be a failure.
func (c *Call) Wait() Answer {
	c.process.tb.Helper()
	timer := time.NewTimer(patienceForAnswer)
	defer timer.Stop()
	select {
	case a := <-c.answer:
		require.Empty(c.process.tb, a.Fail, "worker %d: %s", c.process.number, c.cmd.Do)
		return a
	case <-c.process.ended:
		select {
		case a := <-c.answer:
			return a
		default:
		}
		require.Fail(c.process.tb, "worker died", "worker %d during %s", c.process.number, c.cmd.Do)
	case <-timer.C:
		c.process.Signal(syscall.SIGQUIT) // it says where it hangs
		<-c.process.ended
		require.Fail(c.process.tb, "no answer", "worker %d to %s", c.process.number, c.cmd.Do)
	}
	return Answer{}
}

// Do sends a command and waits for the answer.
func (p *Process) Do(cmd Command) Answer {
	p.tb.Helper()
	return p.Begin(cmd).Wait()
}

// Open opens a client.
func (p *Process) Open(client, dsn string, ttl time.Duration) {
	p.tb.Helper()
	p.Do(Command{Do: Open, Client: client, DSN: dsn, TTL: ttl})
}

// Hold acquires a key and keeps it under the key's name.
func (p *Process) Hold(client, key string) Result {
	p.tb.Helper()
	r := p.Do(Command{Do: Acquire, Client: client, Key: key, As: key}).Result
	require.True(p.tb, r.OK(), r.Err)
	return r
}

// Release releases what Hold keeps.
func (p *Process) Release(key string) Result {
	p.tb.Helper()
	return p.Do(Command{Do: Release, As: key}).Result
}

// Kill kills the process with SIGKILL and returns when.
func (p *Process) Kill() int64 {
	p.tb.Helper()
	p.killed = history.Now()
	p.Signal(syscall.SIGKILL)
	<-p.ended
	_ = p.cmd.Wait() // it was killed
	return p.killed
}

// Signal sends a signal. When it is SIGSTOP, Signal returns after the process has stopped.
func (p *Process) Signal(sig syscall.Signal) {
	p.tb.Helper()
	require.NoError(p.tb, p.cmd.Process.Signal(sig))
	if sig == syscall.SIGSTOP {
		p.awaitStop()
	}
}

// awaitStop waits until no thread of the process runs. The kernel hands the signal to one of them, and the others run on
// until that one has been scheduled: on a busy machine long enough to take a lock.
func (p *Process) awaitStop() {
	p.tb.Helper()
	threads := filepath.Join("/proc", strconv.Itoa(p.PID()), "task", "*", "stat")
	running := func(path string) bool {
		stat, err := os.ReadFile(path)
		_, after, found := strings.Cut(string(stat), ") ")                   // behind the name of the program
		return err == nil && found && !strings.ContainsAny(after[:1], "TZX") // stopped, or dead
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Microsecond) {
		stats, err := filepath.Glob(threads)
		require.NoError(p.tb, err)
		if !slices.ContainsFunc(stats, running) {
			return
		}
		require.True(p.tb, time.Now().Before(end), "the process does not stop")
	}
}

// PID returns the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Events returns what the process has written down so far.
func (p *Process) Events() []history.Event {
	p.tb.Helper()
	events, err := history.Read(p.log)
	require.NoError(p.tb, err)
	return events
}

// Follow returns a follower of what the process writes down.
func (p *Process) Follow() *history.Follower { return history.Follow(p.log) }

// Answer waits for the answer for a while, and says whether there was one.
func (c *Call) Answer(within time.Duration) (Answer, bool) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case a := <-c.answer:
		return a, true
	case <-timer.C:
	case <-c.process.ended:
		select {
		case a := <-c.answer:
			return a, true
		default:
		}
	}
	return Answer{}, false
}

// History is what the process has seen so far: nothing, if it has hardly begun.
func (p *Process) History() ([]*history.Grant, history.Counts) {
	p.tb.Helper()
	events, err := history.Read(p.log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, history.Counts{}
	}
	require.NoError(p.tb, err)
	return history.Grants(p.number, events, p.killed)
}

// patienceForAnswer is for an answer to anything.
const patienceForAnswer = 2 * time.Minute

// stop ends the worker, and for a worker that cannot end says where it hangs.
func (p *Process) stop() {
	defer p.stderr.Close()
	var failure string
	if p.killed == 0 {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // it may have died
		exit := p.Begin(Command{Do: Exit})
		a, ok := exit.Answer(patienceForAnswer)
		failure = a.Fail
		if !ok {
			failure = "it died, or did not end"
			_ = p.cmd.Process.Signal(syscall.SIGQUIT) // it says where it hangs, if it does
		}
		<-p.ended
		if err := p.cmd.Wait(); err != nil {
			failure += ", " + err.Error()
		}
	}
	if failure != "" {
		p.tb.Errorf("worker %d: %s", p.number, failure)
	}
	if p.tb.Failed() {
		p.keep()
	}
}

// keep leaves what the worker wrote where it survives the test.
func (p *Process) keep() {
	for _, name := range []string{p.log, p.stderr.Name()} {
		content, err := os.ReadFile(name)
		if err == nil && len(content) > 0 {
			kept := filepath.Join("..", "results", fmt.Sprintf("%s-worker-%d-%s",
				strings.ReplaceAll(p.tb.Name(), "/", "-"), p.number, filepath.Base(name)))
			if err = os.MkdirAll(filepath.Dir(kept), 0o755); err == nil { //nolint:gosec // for everybody to read
				err = os.WriteFile(kept, content, 0o600)
			}
			p.tb.Logf("see %s (%v)", kept, err)
		}
	}
}
