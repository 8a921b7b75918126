package leaders

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// A point at which the process of a run is frozen: around a statement whose message has some bytes.
type freezePoint struct {
	statement string // in what is sent, or begun by it
	nth       int    // which of such messages
	when      string // before it is sent, after it, or after its answer was read
}

// The statements of a run: a look at the row, the try for the lock, the record. The first use of each names it in a
// Parse and a Bind that are sent together; a later Bind alone.
var freezePoints = map[string]freezePoint{
	"BeforeTheLook":         {"pgbaton_start_run", 1, "before"},
	"LookSent":              {"pgbaton_start_run", 1, "sent"},
	"LookAnswered":          {"pgbaton_start_run", 1, "answered"},
	"BeforeTheTry":          {theTry(), 1, "before"},
	"TrySent":               {theTry(), 1, "sent"},
	"TryAnswered":           {theTry(), 1, "answered"},
	"BeforeTheRecord":       {"pgbaton_start_run", 2, "before"},
	"RecordSent":            {"pgbaton_start_run", 2, "sent"},
	"RecordAnsweredNotRead": {"pgbaton_start_run", 2, "answered"},
}

// theTry is how the engine asks for the lock.
func theTry() string {
	if testclient.Engine() == pgbaton.EngineLease {
		return "pgbaton_acquire_lease"
	}
	return "pgbaton_try"
}

const (
	freezeWindow = 2 * time.Second
	envFreeze    = "PGBATON_TEST_FREEZE" // statement nth when ttl dsn
)

// freezingConn stops its process at a point, once.
type freezingConn struct {
	net.Conn

	point *freezePoint
	seen  *atomic.Int32
	due   atomic.Bool // the next answer is the one
}

func (c *freezingConn) Write(p []byte) (int, error) {
	hit := bytes.Contains(p, []byte(c.point.statement)) && c.seen.Add(1) == int32(c.point.nth)
	if hit && c.point.when == "before" {
		freeze()
	}
	if hit && c.point.when == "answered" {
		c.due.Store(true)
	}
	n, err := c.Conn.Write(p)
	if hit && c.point.when == "sent" {
		freeze()
	}
	return n, err
}

func (c *freezingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.due.CompareAndSwap(true, false) {
		freeze()
	}
	return n, err
}

// freeze stops the whole process until somebody sends SIGCONT.
func freeze() {
	froze.Store(true)
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
}

// froze says that this process has been at its point.
var froze atomic.Bool

// TestOnceFrozenChild is the process that is frozen. It says when its func begins.
func TestOnceFrozenChild(t *testing.T) {
	t.Parallel()
	order := os.Getenv(envFreeze)
	if order == "" {
		return // it runs only as the child of the next test
	}
	var point freezePoint
	var ttl time.Duration
	var dsn string
	_, err := fmt.Sscan(order, &point.statement, &point.nth, &point.when, &ttl, &dsn)
	require.NoError(t, err)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	var seen atomic.Int32
	var armed atomic.Bool
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &armedConn{freezingConn{Conn: conn, point: &point, seen: &seen}, &armed}, nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer pool.Close()
	client, err := pgbaton.New(t.Context(), pool, &pgbaton.Config{TTL: ttl, Engine: testclient.Engine()})
	require.NoError(t, err)
	defer client.Close(context.Background())
	armed.Store(true)
	for range 50 { // on a busy machine the client may lose its session before it comes to the point
		err = client.Once(t.Context(), "frozen", freezeWindow, func(context.Context, *pgbaton.Lock) error {
			fmt.Println("began", time.Now().UnixNano())
			return nil
		})
		if err == nil || froze.Load() {
			break
		}
	}
	fmt.Println("ended", err)
}

// armedConn is a freezingConn that does nothing before the run.
type armedConn struct {
	freezingConn

	armed *atomic.Bool
}

func (c *armedConn) Write(p []byte) (int, error) {
	if !c.armed.Load() {
		return c.Conn.Write(p)
	}
	return c.freezingConn.Write(p)
}

// A process is frozen at each point of a run, for most of a window, or for longer than the window and its TTL, while another
// process calls Once all the time. No two records lie in one window, and no two funcs begin within half of one.
func TestOnce_FrozenAtEachPoint(t *testing.T) {
	t.Parallel()
	for name, point := range freezePoints {
		for length, span := range map[string]struct{ ttl, frozen time.Duration }{
			"MostOfTheWindow": {15 * time.Second, freezeWindow - 150*time.Millisecond},
			"LongerThanAll":   {freezeWindow, freezeWindow + 500*time.Millisecond},
		} {
			t.Run(name+"/"+length, func(t *testing.T) {
				t.Parallel()
				testFrozen(t, point, span.ttl, span.frozen)
			})
		}
	}
}

func testFrozen(t *testing.T, point freezePoint, ttl, frozen time.Duration) {
	t.Helper()
	dsn := lab.Database(t)
	client := testclient.New(t, dsn, nil)
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOnceFrozenChild$", "-test.count=1")
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s %d %s", envFreeze, point.statement, point.nth, point.when, ttl, dsn))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	defer func() {
		_ = child.Process.Signal(syscall.SIGCONT)
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	require.Eventually(t, func() bool { return stopped(child.Process.Pid) }, lab.Hang, time.Millisecond, "it reaches the point")

	var began []time.Time
	var records []time.Time
	try := func() {
		err := client.Once(t.Context(), "frozen", freezeWindow, func(ctx context.Context, _ *pgbaton.Lock) error {
			began = append(began, time.Now())
			last, err := client.LastRun(ctx, "frozen")
			records = append(records, last.Began)
			return err
		})
		if err != nil && !errors.Is(err, pgbaton.ErrNotAcquired) {
			t.Error(err)
		}
	}
	for end := time.Now().Add(frozen); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		try()
	}
	require.NoError(t, child.Process.Signal(syscall.SIGCONT))
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	var said []string
	for end := time.Now().Add(freezeWindow + time.Second); lines != nil || time.Now().Before(end); {
		select {
		case line, ok := <-lines:
			var at int64
			if _, err := fmt.Sscanf(line, "began %d", &at); err == nil {
				began = append(began, time.Unix(0, at))
			}
			said = append(said, line)
			if !ok { // the child has ended
				lines = nil
			}
		case <-time.After(10 * time.Millisecond):
			try()
		}
	}
	t.Log(said)
	require.NotEmpty(t, began)
	for i, first := range began {
		for _, second := range began[:i] {
			require.GreaterOrEqual(t, first.Sub(second).Abs(), freezeWindow/2)
		}
	}
	for i := 1; i < len(records); i++ {
		require.GreaterOrEqual(t, records[i].Sub(records[i-1]), freezeWindow)
	}
}

// stopped says whether a process was stopped by a signal.
func stopped(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "T")
}
