package storm

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// Kind is a kind of fault.
type Kind string

// The kinds. A black hole swallows one direction of connections of one kind, either for less than TTL, after
// which everything arrives, or for longer, after which the connection is cut.
const (
	None        Kind = "none"      // for comparison
	Slow        Kind = "slow"      // a round trip takes 100 ms
	Terminate   Kind = "terminate" // the server ends 20 sessions a second
	Stop        Kind = "stop"      // processes are stopped for 0.3 to 1.2 TTL
	Tables      Kind = "tables"    // tables of the schema are locked for up to 2.5 TTL, or vacuumed full
	Restart     Kind = "restart"   // the server crashes every few seconds
	Failovers   Kind = "failovers" // the server is replaced by another one, as a script has it
	Moved       Kind = "moved"     // the address comes to mean another server for some clients
	ToHolding   Kind = "blackhole-to-holding"
	FromHolding Kind = "blackhole-from-holding"
	ToWaiting   Kind = "blackhole-to-waiting"
	FromWaiting Kind = "blackhole-from-waiting"
	ToRows      Kind = "blackhole-to-rows"
	FromRows    Kind = "blackhole-from-rows"
	Killed      Kind = "killed"  // processes are killed, and others take their places
	Starved     Kind = "starved" // processes have little of the processor
	Cuts        Kind = "cuts"    // connections are cut after any byte, are slow, and pass single bytes
	Refused     Kind = "refused" // logins are: all connections are taken, the password is another one, nobody is there
	Backend     Kind = "backend" // a process of the server is killed, and it ends all sessions
	Clean       Kind = "clean"   // the server is restarted in good order
)

// blackHoles is how many there are at the same time.
const blackHoles = 4

// Kinds are all kinds, but for those that need a script.
var Kinds = []Kind{
	None, Terminate, Stop, ToHolding, FromHolding, ToWaiting, FromWaiting, ToRows, FromRows, Tables, Moved, Slow, Restart,
	Killed, Starved, Cuts, Refused, Backend, Clean,
}

// KindsOf returns the kinds that there are with an engine: leases are not waited for in sessions of their own.
func KindsOf(engine pgbaton.Engine) []Kind {
	if engine != pgbaton.EngineLease {
		return Kinds
	}
	return slices.DeleteFunc(slices.Clone(Kinds), func(k Kind) bool { return holes[k].session == Waiting })
}

// Settings returns what a kind's server needs to be set to.
func (k Kind) Settings() map[string]string {
	if k == Refused {
		return map[string]string{"max_connections": "60"} // all of them are to be taken
	}
	return nil
}

// proxied reports whether processes reach the server through proxies.
func (k Kind) proxied() bool {
	_, hole := holes[k]
	return hole || k == Slow || k == Moved || k == Cuts || k == Refused
}

// holes reports what a black hole swallows.
var holes = map[Kind]struct {
	session   Session
	direction Direction
}{
	ToHolding: {Holding, ToServer}, FromHolding: {Holding, ToClient},
	ToWaiting: {Waiting, ToServer}, FromWaiting: {Waiting, ToClient},
	ToRows: {Rows, ToServer}, FromRows: {Rows, ToClient},
}

// sudden reports whether the server may end a session, and free its locks, before the client can know.
func (k Kind) sudden() bool {
	return slices.Contains([]Kind{Terminate, Restart, Moved, Stop, Cuts, Refused, Backend, Clean}, k)
}

// faults lets the faults of a kind happen until ctx ends, and counts them.
func (f *fight) faults(ctx context.Context) {
	lanes := map[Kind]func(context.Context, *rand.Rand){
		Terminate: f.terminate, Tables: f.lockTables, Restart: f.restart, Clean: f.restart, Moved: f.move, Killed: f.kill,
		Cuts: f.cut, Refused: f.refuse, Backend: f.killBackend,
	}
	var all sync.WaitGroup
	random := func(lane int) *rand.Rand {
		return rand.New(rand.NewPCG(f.opts.Seed, uint64(1000+lane))) //nolint:gosec // no secret
	}
	if _, ok := holes[f.opts.Kind]; ok {
		for lane := range blackHoles {
			all.Go(func() { f.swallow(ctx, random(lane)) })
		}
	}
	if f.opts.Kind == Tables {
		all.Go(func() { f.lockTables(ctx, random(1)) })
	}
	for i, p := range f.workers {
		switch f.opts.Kind {
		case Stop:
			all.Go(func() { f.freeze(ctx, p, random(i)) })
		case Starved:
			all.Go(func() { f.starve(ctx, p, random(i)) })
		}
	}
	if lane := lanes[f.opts.Kind]; lane != nil {
		all.Go(func() { lane(ctx, random(0)) })
	}
	all.Wait()
	<-ctx.Done()
}

// rest waits, and reports whether there is more to do.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// sqlTerminate ends sessions of clients: any, or those that hold the most advisory locks.
const sqlTerminate = `SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity AS a
	WHERE application_name LIKE $1 || '%'
	ORDER BY CASE WHEN $3 THEN (SELECT count(*) FROM pg_locks AS l WHERE l.pid = a.pid AND locktype = 'advisory' AND granted) END DESC,
	         random() LIMIT $2) AS chosen`

// terminate ends sessions of the clients, 20 a second.
func (f *fight) terminate(ctx context.Context, _ *rand.Rand) {
	c := &control{field: f.home}
	defer c.close()
	for rest(ctx, 50*time.Millisecond) {
		f.end(ctx, c, worker.StormClient, 1, false)
	}
}

// end ends so many sessions of clients whose name begins so, any or the fullest.
func (f *fight) end(ctx context.Context, c *control, clients string, most int, fullest bool) {
	err := c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, sqlTerminate, clients, most, fullest)
		f.injected.Add(tag.RowsAffected())
		return err
	})
	if err != nil && ctx.Err() == nil {
		f.tb.Logf("end sessions: %v", err)
	}
}

// freeze stops a process every now and then. A process that is stopped goes on also when this one dies.
func (f *fight) freeze(ctx context.Context, p *worker.Process, r *rand.Rand) {
	thaw, err := thawer(p.PID())
	if err != nil {
		f.tb.Errorf("%v", err)
		return
	}
	defer thaw()
	for rest(ctx, between(r, f.opts.TTL/20, f.opts.TTL/2)) {
		p.Signal(syscall.SIGSTOP)
		f.injected.Add(1)
		time.Sleep(between(r, f.opts.TTL*3/10, f.opts.TTL*12/10))
		p.Signal(syscall.SIGCONT)
	}
}

// thawer starts a shell that lets a process go on when this one has died. The returned function ends it.
func thawer(pid int) (func(), error) {
	cmd := exec.Command("/bin/sh", "-c", `trap '' HUP INT QUIT TERM; read -r word || kill -CONT "$1"`, "thawer", strconv.Itoa(pid))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_, _ = pipe.Write([]byte("done\n"))
		_ = pipe.Close()
		_ = cmd.Wait()
	}, nil
}

// swallow makes black holes.
func (f *fight) swallow(ctx context.Context, r *rand.Rand) {
	hole := holes[f.opts.Kind]
	for rest(ctx, between(r, 20*time.Millisecond, f.opts.TTL/4)) {
		end := f.proxies[r.IntN(len(f.proxies))].Silence(hole.session, hole.direction, r)
		if end == nil {
			continue
		}
		f.injected.Add(1)
		long := r.IntN(2) == 0
		if long {
			rest(ctx, between(r, f.opts.TTL*13/10, f.opts.TTL*3))
		} else {
			rest(ctx, between(r, f.opts.TTL/10, f.opts.TTL*8/10))
		}
		end(long)
	}
}

// lockTables locks one table of the schema after the other, or rewrites it.
func (f *fight) lockTables(ctx context.Context, r *rand.Rand) {
	c := &control{field: f.home}
	defer c.close()
	var tables []string
	err := c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, "SELECT tablename FROM pg_tables WHERE schemaname = 'pgbaton' ORDER BY 1")
		if err == nil {
			tables, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err
	})
	if err != nil || len(tables) == 0 {
		f.tb.Errorf("the schema's tables: %v, %v", tables, err)
		return
	}
	r.Shuffle(len(tables), func(i, j int) { tables[i], tables[j] = tables[j], tables[i] })
	for i := 0; rest(ctx, between(r, 50*time.Millisecond, 500*time.Millisecond)); i++ {
		table := pgx.Identifier{"pgbaton", tables[i%len(tables)]}.Sanitize()
		full := r.IntN(5) == 0
		err := c.do(context.WithoutCancel(ctx), func(ctx context.Context, conn *pgx.Conn) error {
			if full {
				_, err := conn.Exec(ctx, "VACUUM FULL "+table)
				return err
			}
			tx, err := conn.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err = tx.Exec(ctx, "LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
				return err
			}
			time.Sleep(between(r, f.opts.TTL/10, 5*f.opts.TTL/2))
			return tx.Commit(ctx)
		})
		f.injected.Add(1)
		if err != nil {
			f.tb.Logf("lock %s: %v", table, err)
		}
	}
}

// restart crashes the server, or restarts it in good order.
func (f *fight) restart(ctx context.Context, r *rand.Rand) {
	server, ok := f.home.server.(interface {
		Restart(ctx context.Context, mode string) error
	})
	require.True(f.tb, ok, "the server cannot be restarted")
	mode := "immediate"
	if f.opts.Kind == Clean {
		mode = "fast"
	}
	for rest(ctx, between(r, f.opts.TTL/4, 3*f.opts.TTL/2)) {
		if err := server.Restart(context.WithoutCancel(ctx), mode); err != nil {
			f.tb.Errorf("restart: %v", err)
			return
		}
		f.injected.Add(1)
	}
}

// move leads the first process's connections to the other server and back, and ends none, one or all of its sessions.
func (f *fight) move(ctx context.Context, r *rand.Rand) {
	proxy := f.proxies[0]
	old := &control{field: f.home}
	other := &control{field: f.away}
	watching, stop := context.WithCancel(ctx)
	var watched sync.WaitGroup
	watched.Go(func() { f.watchBoth(watching) })
	times, most, fullest := 1, 1, true // at the first move, only the session with the locks
	for rest(ctx, between(r, f.opts.TTL/4, f.opts.TTL/2)) {
		f.injected.Add(1)
		proxy.Lead(other.field.addr)
		for range times {
			rest(ctx, between(r, time.Millisecond, f.opts.TTL/4))
			f.end(ctx, old, worker.StormClient+"0-", most, fullest)
			most, fullest = []int{0, 1, 1, 2, 100}[r.IntN(5)], r.IntN(3) > 0
		}
		times = 1 + r.IntN(3)
		rest(ctx, time.Second+f.opts.TTL/2)
		old, other = other, old
	}
	stop()
	watched.Wait()
	proxy.Lead(f.home.addr)
	end := &control{field: f.away}
	f.end(context.WithoutCancel(ctx), end, worker.StormClient+"0-", 100, false)
	end.close()
	old.close()
	other.close()
}
