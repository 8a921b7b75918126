package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Load is what a storm does: every primitive of the library at the same time, on few keys, until the command StormEnd
// with the same As. The command's DSN is the clients', a URL that ends with a parameter, its TTL and MaxConns theirs.
type Load struct {
	Rows    string        `json:"rows,omitempty"`   // the service's own pool; without it nothing that writes rows is done
	Engine  string        `json:"engine,omitempty"` // of the clients; that of all tests if it is empty
	Clients int           `json:"clients"`
	Pause   time.Duration `json:"pause"` // the longest rest between two rounds of a lane
	Seed    uint64        `json:"seed"`
	Bulk    int           `json:"bulk,omitempty"`   // so many locks are held beside, so that a client has several anchors; it is the only one
	Mutant  string        `json:"mutant,omitempty"` // a mistake on purpose: see Deaf and Leak
}

// Mistakes of a service that the judge of a storm must find.
const (
	Deaf = "deaf" // it does not listen to a loss, and takes every release for good
	Leak = "leak" // it keeps a connection with a lock
)

// StormClient begins the application_name of a storm's clients; the command's As and the client's number follow.
const StormClient = "storm-client-"

// OnceWindow is the window of the storm's calls of Once whose name comes again.
const OnceWindow = 400 * time.Millisecond

// WindowOf returns the window of the runs of a name. The names of jobs change with time, and each is due once in a storm.
func WindowOf(name string) time.Duration {
	if strings.HasPrefix(name, jobs) {
		return 24 * time.Hour
	}
	return OnceWindow
}

const jobs = "storm/job/"

// job returns the name of a job that is due, or was lately.
func job(r *rand.Rand) string {
	const every, lately = 2 * time.Second, 60 * time.Second
	return fmt.Sprintf("%s%d", jobs, (history.Now()-r.Int64N(int64(lately)))/int64(every))
}

// storm is a load under way.
type storm struct {
	*child

	cmd    Command
	load   Load
	end    context.Context // ends when the load is to stop
	stop   context.CancelFunc
	pool   *pgxpool.Pool
	stats  *stats
	stalls *stalls

	leaked *pgx.Conn // by a mistake

	runs atomic.Int64 // numbers the transactions

	mu       sync.Mutex
	outcomes map[string]outcome // of transactions, by the number that each leaves in its row
}

// outcome is what a caller was told of its transaction.
type outcome struct {
	op        string
	called    int64
	at        int64
	committed bool
	lost      bool
	unknown   bool
}

func (c *child) stormOf(cmd Command) *storm {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.storms[cmd.As]
}

// stormSince answers how much of each operation has succeeded since the last question.
func (c *child) stormSince(context.Context, Command) (Answer, error) {
	counts := map[string]int64{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.storms {
		s.stats.since(counts)
	}
	return Answer{Counts: counts}, nil
}

func (c *child) stormEnd(_ context.Context, cmd Command) (Answer, error) {
	s := c.stormOf(cmd)
	if s == nil {
		return Answer{}, errors.New("no storm is called " + cmd.As)
	}
	s.stop()
	return Answer{}, nil
}

func (c *child) storm(ctx context.Context, cmd Command) (Answer, error) {
	end, stop := context.WithCancel(ctx)
	defer stop()
	s := &storm{
		child: c, cmd: cmd, load: *cmd.Load, end: end, stop: stop,
		stats: newStats(), stalls: &stalls{log: c.log}, outcomes: map[string]outcome{},
	}
	c.mu.Lock()
	c.storms[cmd.As] = s
	c.mu.Unlock()
	if s.load.Rows != "" {
		var err error
		if s.pool, err = pgxpool.New(ctx, s.load.Rows); err != nil {
			return Answer{}, err
		}
		defer s.pool.Close()
	}
	if s.load.Mutant == Leak {
		if err := s.leak(ctx); err != nil {
			return Answer{}, err
		}
	}
	watched := make(chan struct{})
	watching, unwatch := context.WithCancel(ctx)
	go func() {
		defer close(watched)
		s.stalls.watch(watching)
	}()
	var all sync.WaitGroup
	for i := range s.load.Clients {
		all.Go(func() { s.serve(ctx, i) })
	}
	if s.load.Bulk == 0 {
		all.Go(func() { s.churn(ctx) })
	}
	all.Wait()
	unwatch()
	<-watched
	var violations []string
	var missing []Missing
	if s.pool != nil {
		violations, missing = s.compare(ctx)
	}
	return Answer{Report: s.stats.report(s.stalls, violations, missing)}, nil
}

func (s *storm) over() bool { return s.end.Err() != nil }

// random returns a source of a lane's own.
func (s *storm) random(lane int) *rand.Rand {
	return rand.New(rand.NewPCG(s.load.Seed, uint64(lane))) //nolint:gosec // no secret
}

// open opens a client, again and again, as a service's supervisor does. Nil says that the load is over.
func (s *storm) open(ctx context.Context, name string) *pgbaton.Client {
	for !s.over() {
		within, cancel := context.WithTimeout(ctx, 15*time.Second)
		called := history.Now()
		client, err := pgbaton.Open(within, s.cmd.DSN+"&application_name="+name, &pgbaton.Config{
			TTL: s.cmd.TTL, MaxConns: s.cmd.MaxConns, Name: name,
			Engine: cmp.Or(pgbaton.Engine(s.load.Engine), testclient.Engine()),
			Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
		s.stats.note("open", within, result("open", called, err))
		cancel()
		if err == nil {
			return client
		}
		s.pause(20 * time.Millisecond)
	}
	return nil
}

// close closes a client. Close waits for the server's word at most for TTL; without it the error is allowed.
func (s *storm) close(ctx context.Context, client *pgbaton.Client) {
	within, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	called := history.Now()
	err := client.Close(within)
	s.stats.note("close", within, result("close", called, err))
}

func (s *storm) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.end.Done():
	}
}

// serve is one client with its lanes: goroutines that each do one kind of operation.
func (s *storm) serve(ctx context.Context, number int) {
	client := s.open(ctx, fmt.Sprintf("%s%s-%d", StormClient, s.cmd.As, number))
	if client == nil {
		return
	}
	var lanes sync.WaitGroup
	for i, round := range s.lanes(client, number) {
		random := s.random(number<<16 | i)
		lanes.Go(func() {
			for !s.over() {
				round(ctx, random)
				s.pause(upTo(random, s.load.Pause))
			}
		})
	}
	lanes.Wait()
	s.close(ctx, client)
}

// leak is the mistake of that name.
func (s *storm) leak(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.load.Rows)
	if err != nil {
		return err
	}
	s.leaked = conn
	_, err = conn.Exec(ctx, "SELECT pg_advisory_lock(pgbaton.key('storm/leaked/' || pg_backend_pid()))")
	return err
}

type round = func(ctx context.Context, random *rand.Rand)

func (s *storm) lanes(client *pgbaton.Client, number int) []round {
	one, three := &line{name: "storm/one", op: "semaphore of 1", capacity: 1}, &line{name: "storm/three", op: "semaphore of 3", capacity: 3}
	lanes := []round{
		func(ctx context.Context, r *rand.Rand) { s.lock(ctx, client, r) },
		func(ctx context.Context, r *rand.Rand) { s.lock(ctx, client, r) },
		func(ctx context.Context, r *rand.Rand) { s.lock(ctx, client, r) },
		func(ctx context.Context, r *rand.Rand) { s.long(ctx, client, r) },
		func(ctx context.Context, r *rand.Rand) { s.long(ctx, client, r) },
		func(ctx context.Context, r *rand.Rand) { s.set(ctx, client, r) },
		func(ctx context.Context, r *rand.Rand) { s.permits(ctx, client, one, r) },
		func(ctx context.Context, r *rand.Rand) { s.permits(ctx, client, three, r) },
		func(ctx context.Context, r *rand.Rand) { s.permits(ctx, client, three, r) },
		func(ctx context.Context, r *rand.Rand) { s.lead(ctx, client, "storm/0", r) },
		func(ctx context.Context, r *rand.Rand) { s.lead(ctx, client, "storm/1", r) },
		func(ctx context.Context, r *rand.Rand) { s.once(ctx, client, r) },
	}
	if s.load.Bulk > 0 {
		lanes = append(lanes, func(ctx context.Context, r *rand.Rand) { s.bulk(ctx, client, number, r) })
	}
	if s.pool != nil {
		lanes = append(lanes, s.transactions(client)...)
	}
	return lanes
}

// churn opens one client after the other, takes a lock with it, and closes it.
func (s *storm) churn(ctx context.Context) {
	random := s.random(-1)
	for round := 0; !s.over(); round++ {
		client := s.open(ctx, fmt.Sprintf("%s%s-passing-%d", StormClient, s.cmd.As, round))
		if client == nil {
			return
		}
		s.lock(ctx, client, random)
		s.close(ctx, client)
		s.pause(500 * time.Millisecond)
	}
}

// stalls are the times at which the process was paused: it was stopped, or the machine had no time for it.
type stalls struct {
	log *history.Log

	mu   sync.Mutex
	list []stall
}

type stall struct{ from, to int64 }

const (
	stallTick  = 2 * time.Millisecond
	stallLeast = 20 * time.Millisecond
)

func (s *stalls) watch(ctx context.Context) {
	ticker := time.NewTicker(stallTick)
	defer ticker.Stop()
	last := history.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := history.Now()
		if now-last > int64(stallLeast) {
			from := last + int64(stallTick)
			s.log.Append(history.Event{At: now, Kind: history.Stood, From: from})
			s.mu.Lock()
			s.list = append(s.list, stall{from, now})
			s.mu.Unlock()
		}
		last = now
	}
}

// within returns for how long the process was paused in an interval.
func (s *stalls) within(from, to int64) (stood int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.list {
		stood += max(min(to, st.to)-max(from, st.from), 0)
	}
	return stood
}
