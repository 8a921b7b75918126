package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/pgbaton/pgbaton/benchmarks/internal/peer"
)

// variable holds the job of a process that is a worker.
const variable = "PGBATON_COMPARE_JOB"

// Main makes the process a worker if it was started as one, and does not return then.
func Main() {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return
	}
	if err := work(context.Background(), text, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// work reports that it is ready, waits to be told to begin, and writes what it was granted.
func work(ctx context.Context, text string, in io.Reader, out io.Writer) error {
	var j Job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	client, err := peer.Open(ctx, j.Peer, j.At, j.Capacity)
	if err != nil {
		return err
	}
	warm, err := client.Acquire(ctx, j.Name) // what a first use costs is not what is measured
	if err == nil {
		err = warm(ctx)
	}
	if err != nil {
		return errors.Join(err, client.Close(ctx))
	}
	fmt.Fprintln(out, "ready")
	if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
		return errors.Join(err, client.Close(ctx))
	}
	grants, err := j.run(ctx, client)
	return errors.Join(err, json.NewEncoder(out).Encode(grants), client.Close(ctx))
}

// process is a worker as its parent sees it.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Measure runs the job in so many processes at the same time.
func Measure(ctx context.Context, j Job, processes int) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, j.For+time.Minute)
	defer cancel() // also ends what still runs after an error
	var all []*process
	for range processes {
		p, err := start(ctx, j)
		if err != nil {
			return Result{}, err
		}
		all = append(all, p)
	}
	for _, p := range all {
		if _, err := p.out.ReadString('\n'); err != nil {
			return Result{}, fmt.Errorf("%s: a worker did not start: %w", j.Peer, err)
		}
	}
	for _, p := range all {
		if _, err := io.WriteString(p.in, "go\n"); err != nil {
			return Result{}, err
		}
	}
	var grants []Grant
	for _, p := range all {
		var some []Grant
		err := json.NewDecoder(p.out).Decode(&some)
		if err = errors.Join(err, p.cmd.Wait()); err != nil {
			return Result{}, fmt.Errorf("%s: %w", j.Peer, err)
		}
		grants = append(grants, some...)
	}
	return judge(grants, j.Capacity)
}

func start(ctx context.Context, j Job) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, program)} //nolint:gosec // this program
	p.cmd.Env = append(os.Environ(), variable+"="+string(text))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	return p, p.cmd.Start()
}
