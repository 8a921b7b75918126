package worker

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// child is a worker process.
type child struct {
	log *history.Log

	out     sync.Mutex // of stdout
	stopped atomic.Bool

	mu         sync.Mutex
	clients    map[string]*pgbaton.Client
	locks      map[string]*held
	semaphores map[[2]string]*pgbaton.Semaphore // by client and name
	storms     map[string]*storm                // by the command's As
	services   map[string]*service              // by client
	terms      sync.Map                         // *ownTerm by client/name
}

// held is a lock or a permit that a later command will use.
type held struct {
	lock holding
	op   int64
}

// holding is what locks and permits have in common.
type holding interface {
	Token() pgbaton.Token
	Context() context.Context
	Done() <-chan struct{}
	Err() error
	Release(ctx context.Context) error
}

var (
	_ holding = (*pgbaton.Lock)(nil)
	_ holding = (*pgbaton.Permit)(nil)
)

// Main makes the process a worker if it was started as one, and does not return then.
func Main() {
	path := os.Getenv(envLog)
	if path == "" {
		return
	}
	log, err := history.Create(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(2)
	}
	c := &child{log: log, clients: map[string]*pgbaton.Client{}, locks: map[string]*held{}, semaphores: map[[2]string]*pgbaton.Semaphore{}, storms: map[string]*storm{}, services: map[string]*service{}}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var cmd Command
		if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(2)
		}
		if cmd.Do == Exit {
			c.answer(cmd, c.exit())
			os.Exit(0)
		}
		go func() { c.answer(cmd, c.do(context.Background(), cmd)) }()
	}
	os.Exit(3) // the parent is gone
}

func (c *child) answer(cmd Command, a Answer) {
	a.ID = cmd.ID
	line, err := json.Marshal(a)
	if err != nil {
		panic(err) // plain fields
	}
	c.out.Lock()
	defer c.out.Unlock()
	_, _ = os.Stdout.Write(append(line, '\n')) // without the parent the worker ends anyway
}

func (c *child) do(ctx context.Context, cmd Command) Answer {
	do := map[string]func(context.Context, Command) (Answer, error){
		Open: c.open, Close: c.close, Acquire: c.acquire, AcquireAll: c.acquireAll, Release: c.release,
		ReleaseAll: c.releaseAll, Err: c.err, Watch: c.watch, Guard: c.guard, Hammer: c.hammer, Crowd: c.crowd,
		Relay: c.relay, Permits: c.permits, Assert: c.assert, Lead: c.lead, Resign: c.resign, AskResign: c.askResign, Sets: c.sets,
		Stop: c.stop, Storm: c.storm, StormSince: c.stormSince, StormEnd: c.stormEnd,
		Gather: c.gather, Serve: c.serve,
	}[cmd.Do]
	if do == nil {
		return Answer{Fail: "no such command: " + cmd.Do}
	}
	a, err := do(ctx, cmd)
	if err != nil {
		a.Fail = err.Error()
	}
	return a
}

func (c *child) stop(_ context.Context, cmd Command) (Answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cmd.Client == "" {
		c.stopped.Store(true)
	}
	for client, s := range c.services {
		if cmd.Client == "" || cmd.Client == client {
			s.end()
		}
	}
	return Answer{}, nil
}

func (c *child) open(ctx context.Context, cmd Command) (Answer, error) {
	client, err := openClient(ctx, cmd)
	if err != nil {
		return Answer{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients[cmd.Client] = client
	return Answer{}, nil
}

// openClient opens a client, again and again if its start-up is hit by a fault, or is slow on a busy machine, as a service
// does.
func openClient(ctx context.Context, cmd Command) (*pgbaton.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		client, err := pgbaton.Open(ctx, cmd.DSN, &pgbaton.Config{
			// Without a TTL of the command, one that is longer than a busy machine keeps a process from the server.
			TTL: cmp.Or(cmd.TTL, time.Minute), MaxConns: cmd.MaxConns, MaxHeld: cmd.MaxHeld, Name: cmd.Name,
			Engine: cmp.Or(pgbaton.Engine(cmd.Engine), testclient.Engine()),
			Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
		var hit *pgconn.PgError
		again := errors.As(err, &hit) || errors.Is(err, context.DeadlineExceeded)
		if err == nil || !again || ctx.Err() != nil {
			return client, err
		}
	}
}

func (c *child) close(ctx context.Context, cmd Command) (Answer, error) {
	c.mu.Lock()
	client := c.clients[cmd.Client]
	delete(c.clients, cmd.Client)
	maps.DeleteFunc(c.semaphores, func(of [2]string, _ *pgbaton.Semaphore) bool { return of[0] == cmd.Client })
	c.mu.Unlock()
	return Answer{}, client.Close(ctx)
}

func (c *child) exit() Answer {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.mu.Lock()
	clients := slices.Collect(maps.Values(c.clients))
	c.mu.Unlock() // a command that a closed client has ended needs it to end
	var errs []error
	for _, client := range clients {
		// Close waits for the server's word at most for TTL, which is a second in some tests: a slow machine may be slower.
		if err := client.Close(ctx); err != nil && (!errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil) {
			errs = append(errs, err)
		}
	}
	// A connection that was closed in the middle of something ends in the background, within 15 s.
	left := goleak.Find()
	for end := time.Now().Add(patience / 2); left != nil && time.Now().Before(end); left = goleak.Find() {
	}
	errs = append(errs, left)
	if err := errors.Join(errs...); err != nil {
		return Answer{Fail: err.Error()}
	}
	return Answer{}
}

func (c *child) client(name string) *pgbaton.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clients[name]
}

func (c *child) lock(name string) (*held, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.locks[name]
	if h == nil {
		return nil, errors.New("no lock is kept as " + name)
	}
	return h, nil
}

// result is the outcome of a call that began at a moment and has just ended.
func result(what string, called int64, err error) Result {
	r := Result{What: what, Called: called, At: history.Now(), err: err}
	if err != nil {
		r.Err = err.Error()
		r.NotAcquired = errors.Is(err, pgbaton.ErrNotAcquired)
		r.Lost = errors.Is(err, pgbaton.ErrLost)
		r.NotHeld = errors.Is(err, pgbaton.ErrNotHeld)
		r.TooMany = errors.Is(err, pgbaton.ErrTooManyLocks)
		r.Deadlock = errors.Is(err, pgbaton.ErrDeadlock)
		r.TimedOut = errors.Is(err, context.DeadlineExceeded)
	}
	return r
}
