package worker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// Process is a worker as its parent sees it.
type Process struct {
	tb     testing.TB
	number int
	log    string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer

	mu     sync.Mutex
	last   int
	calls  map[int]chan Answer
	ended  chan struct{} // its output is closed
	killed int64         // when, 0 if it was not
}

var numbers = struct {
	sync.Mutex
	last int
}{}

// Start starts a worker. It ends with the test, which then fails if the worker left goroutines behind, had a
// data race or died of something else than the test's own doing.
func Start(tb testing.TB) *Process {
	tb.Helper()
	numbers.Lock()
	numbers.last++
	number := numbers.last
	numbers.Unlock()
	p := &Process{tb: tb, number: number, log: filepath.Join(tb.TempDir(), "history.jsonl"),
		calls: map[int]chan Answer{}, ended: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envLog+"="+p.log)
	p.cmd.Stderr = &p.stderr
	var err error
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
	defer close(p.ended)
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
			call <- a
		}
	}
}

// Call is a command under way.
type Call struct {
	process *Process
	cmd     Command
	answer  chan Answer
}

// Begin sends a command.
func (p *Process) Begin(cmd Command) *Call {
	p.tb.Helper()
	call := &Call{process: p, cmd: cmd, answer: make(chan Answer, 1)}
	p.mu.Lock()
	p.last++
	cmd.ID = p.last
	p.calls[cmd.ID] = call.answer
	p.mu.Unlock()
	line, err := json.Marshal(cmd)
	require.NoError(p.tb, err)
	_, err = p.stdin.Write(append(line, '\n'))
	require.NoError(p.tb, err)
	return call
}

// Answered is ready when the command was answered; it is then for the caller to take the answer from it.
func (c *Call) Answered() <-chan Answer { return c.answer }

// Wait waits for the answer, which must not be a failure.
func (c *Call) Wait() Answer {
	c.process.tb.Helper()
	const patience = 2 * time.Minute
	timer := time.NewTimer(patience)
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

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) {
	p.tb.Helper()
	require.NoError(p.tb, p.cmd.Process.Signal(sig))
}

// History is what the process has seen so far.
func (p *Process) History() ([]*history.Grant, history.Counts) {
	p.tb.Helper()
	events, err := history.Read(p.log)
	require.NoError(p.tb, err)
	return history.Grants(p.number, events, p.killed)
}

func (p *Process) stop() {
	if p.killed == 0 {
		p.Signal(syscall.SIGCONT)
		a := p.Do(Command{Do: Exit})
		require.Empty(p.tb, a.Fail)
		<-p.ended
		require.NoError(p.tb, p.cmd.Wait(), "worker %d", p.number)
	}
	if p.tb.Failed() {
		const tail = 4000
		text := p.stderr.String()
		p.tb.Logf("worker %d said:\n%s", p.number, text[max(0, len(text)-tail):])
	}
}
