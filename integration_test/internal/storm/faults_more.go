package storm

import (
	"context"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// victim is a process that was killed.
type victim struct {
	process *worker.Process
	at      int64
}

// kill kills a process every now and then, and starts another one in its place.
func (f *fight) kill(ctx context.Context, r *rand.Rand) {
	for rest(ctx, between(r, f.opts.TTL/4, f.opts.TTL)) {
		i := r.IntN(len(f.workers))
		p := f.workers[i]
		f.killed = append(f.killed, victim{p, p.Kill()})
		f.injected.Add(1)
		f.start(i)
	}
}

// starve lets a process run for a tenth of the time.
func (f *fight) starve(ctx context.Context, p *worker.Process, r *rand.Rand) {
	thaw, err := thawer(p.PID())
	if err != nil {
		f.tb.Errorf("%v", err)
		return
	}
	defer thaw()
	for rest(ctx, between(r, time.Millisecond, 10*time.Millisecond)) {
		p.Signal(syscall.SIGSTOP)
		f.injected.Add(1)
		time.Sleep(between(r, 10*time.Millisecond, 90*time.Millisecond))
		p.Signal(syscall.SIGCONT)
	}
}

// cut makes a bad network: connections are cut after any byte, and what passes is late and in pieces.
func (f *fight) cut(ctx context.Context, r *rand.Rand) {
	pieces := []int{0, 0, 0, 1, 7}
	for rest(ctx, between(r, 5*time.Millisecond, 150*time.Millisecond)) {
		proxy := f.proxies[r.IntN(len(f.proxies))]
		proxy.Slice(pieces[r.IntN(len(pieces))])
		proxy.Delay(time.Duration(r.IntN(5)) * time.Millisecond)
		if proxy.CutAfter(r.IntN(1000), r) {
			f.injected.Add(1)
		}
	}
	for _, proxy := range f.proxies {
		proxy.Slice(0)
		proxy.Delay(0)
	}
}

// refuse has logins refused, each time in another way and after some sessions were ended.
func (f *fight) refuse(ctx context.Context, r *rand.Rand) {
	ways := []func(context.Context, time.Duration, func()){f.takeAll, f.changePassword, f.leadNowhere}
	c := &control{field: f.home}
	defer c.close()
	for i := r.IntN(len(ways)); rest(ctx, between(r, f.opts.TTL/8, f.opts.TTL/2)); i++ {
		ways[i%len(ways)](ctx, between(r, f.opts.TTL/4, 3*f.opts.TTL/2), func() {
			f.end(ctx, c, worker.StormClient, 1+r.IntN(6), false)
		})
		f.injected.Add(1)
	}
}

const tooManyConnections = "53300"

// takeAll takes all connections that are left for a while.
func (f *fight) takeAll(ctx context.Context, d time.Duration, end func()) {
	within, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for within.Err() == nil {
		conn, err := pgx.Connect(within, f.home.url("")+"&application_name=storm-filler")
		switch {
		case err == nil:
			defer closeSoon(conn)
		case pgerr.Code(err) == tooManyConnections:
			end()
			rest(within, 20*time.Millisecond)
		}
	}
}

func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// changePassword has the role another password for a while.
func (f *fight) changePassword(ctx context.Context, d time.Duration, end func()) {
	admin, err := pgx.Connect(ctx, f.home.server.URL())
	if err != nil {
		if ctx.Err() == nil {
			f.tb.Logf("change the password: %v", err)
		}
		return
	}
	defer closeSoon(admin)
	set := func(ctx context.Context, password string) {
		if _, err := admin.Exec(ctx, "ALTER ROLE storm PASSWORD '"+password+"'"); err != nil {
			f.tb.Errorf("set the password: %v", err)
		}
	}
	ctx = context.WithoutCancel(ctx)
	set(ctx, strings.Repeat(account, 2))
	end()
	time.Sleep(d)
	set(ctx, account)
}

// leadNowhere has nobody at the address for a while.
func (f *fight) leadNowhere(ctx context.Context, d time.Duration, _ func()) {
	for _, proxy := range f.proxies {
		proxy.Lead("")
		proxy.Cut()
	}
	rest(ctx, d)
	for _, proxy := range f.proxies {
		proxy.Lead(f.home.addr)
	}
}

// killBackend kills a process of the server that has nothing to do with the clients.
func (f *fight) killBackend(ctx context.Context, r *rand.Rand) {
	for rest(ctx, between(r, f.opts.TTL/4, 3*f.opts.TTL/2)) {
		conn, err := pgx.Connect(ctx, f.home.url("")+"&application_name=storm-bystander")
		if err != nil {
			continue // it is not up yet
		}
		if err := syscall.Kill(int(conn.PgConn().PID()), syscall.SIGKILL); err != nil {
			f.tb.Errorf("kill a process of the server: %v", err)
		}
		f.injected.Add(1)
		closeSoon(conn)
	}
}
