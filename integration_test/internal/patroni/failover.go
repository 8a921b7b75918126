package patroni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// Kind is a way in which the leader changes.
type Kind string

// The kinds.
const (
	// Switchover is patronictl switchover: the leader shuts down cleanly, and another node that has everything leads.
	Switchover Kind = "switch-over"
	// Kill is the end of the leader's postmaster by SIGKILL.
	Kill Kind = "kill"
	// Behind is Kill after the other nodes have got nothing for a while.
	Behind Kind = "kill, others behind"
	// Fence is a leader that is frozen with its Patroni by SIGSTOP, and killed before it goes on, as by a watchdog device.
	Fence Kind = "freeze, fence"
	// Thaw is the same without a watchdog device: the old leader goes on when another node leads.
	Thaw Kind = "freeze, thaw"
	// Unplanned is a change that nobody asked for: the machine had no time for Patroni.
	Unplanned Kind = "unplanned"
)

// Failover is a change of the leader. Its stamps are those of package history.
type Failover struct {
	Kind     Kind
	From, To string
	// Whole is a time before which all that had been written was on every node.
	Whole int64
	// Began is when the leader was asked to give up, was killed or was frozen, Led when another one led, and Ended when the
	// cluster was whole again.
	Began, Led, Ended int64
	// Loses reports that what was written between Whole and Lost may be lost: what did not wait for another node, and in an
	// asynchronous cluster everything.
	Loses bool
	Lost  int64
}

const (
	// behind is for how long the other nodes get nothing.
	behind = 1500 * time.Millisecond
	// thawed is for how long a leader stays frozen when another one leads.
	thawed = 2 * time.Second
)

// Unplanned waits until the cluster is whole and returns a change of the leader that nobody asked for since it last was. Nil
// says that there was none.
func (c *Cluster) Unplanned(ctx context.Context) (*Failover, error) {
	before := c.last
	now, err := c.AwaitWhole(ctx)
	if err != nil {
		return nil, err
	}
	c.last = now
	switch {
	case now.timeline == before.timeline:
		return nil, nil
	case now.timeline < before.timeline:
		return nil, fmt.Errorf("patroni: %s leads on timeline %d, which was over: it is %d", now.Leader.name, now.timeline, before.timeline)
	}
	at := history.Now()
	return &Failover{
		Kind: Unplanned, From: before.Leader.name, To: now.Leader.name,
		Whole: before.At, Began: before.At, Led: now.At, Ended: at, Loses: true, Lost: at,
	}, nil
}

// Fail lets the leader of a whole cluster change and waits until the cluster is whole again.
func (c *Cluster) Fail(ctx context.Context, kind Kind) (f Failover, err error) {
	old := c.last.Leader
	f = Failover{Kind: kind, Loses: kind != Switchover, Whole: c.last.At}
	f.From = old.name
	do := map[Kind]func(context.Context, *Node, *Failover) error{
		Switchover: c.switchOver, Kill: c.killed, Behind: c.killedAhead, Fence: c.frozen, Thaw: c.frozen,
	}[kind]
	if do == nil {
		return f, fmt.Errorf("patroni: no such kind: %q", kind)
	}
	if err = do(ctx, old, &f); err != nil {
		return f, fmt.Errorf("%s of %s: %w", kind, old.name, err)
	}
	now, err := c.AwaitWhole(ctx)
	if err != nil {
		return f, fmt.Errorf("after %s of %s: %w", kind, old.name, err)
	}
	f.Ended = history.Now()
	f.Lost = f.Led
	switch passed := now.timeline - c.last.timeline; {
	case passed < 1:
		return f, fmt.Errorf("after %s of %s: %s leads on timeline %d, and it was %d before", kind, old.name, now.Leader.name, now.timeline, c.last.timeline)
	case passed > 1: // there was another one, which nobody asked for
		f.Loses, f.Lost = true, f.Ended
	}
	c.last = now
	return f, nil
}

// led waits until another node leads.
func (c *Cluster) led(ctx context.Context, old *Node, f *Failover) error {
	leader, err := c.AwaitLeader(ctx, old)
	if err != nil {
		return err
	}
	f.Led, f.To = history.Now(), leader.name
	return nil
}

func (c *Cluster) switchOver(ctx context.Context, old *Node, f *Failover) error {
	role := "replica"
	if c.synchronous {
		role = "synchronous"
	}
	fit := slices.IndexFunc(c.nodes, func(n *Node) bool { return n != old && n.is(ctx, role) })
	if fit < 0 {
		return fmt.Errorf("patroni: no node is a %s", role)
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := c.sandbox.Command(within, old.dir, []string{"PATRONI_"}, c.programs.patronictl, "-c", old.config(),
		"switchover", scope, "--leader", old.name, "--candidate", c.nodes[fit].name, "--force")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	f.Began = history.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("patroni: %w", err)
	}
	err := c.led(within, old, f)
	if ended := cmd.Wait(); ended != nil { // it also waits until the new leader leads
		err = errors.Join(err, fmt.Errorf("patronictl: %w\n%s", ended, out.String()))
	}
	return err
}

func (c *Cluster) killed(ctx context.Context, old *Node, f *Failover) error {
	f.Began = history.Now()
	bury, err := old.kill(false)
	if err != nil {
		return err
	}
	return errors.Join(c.led(ctx, old, f), bury(ctx))
}

// killedAhead stops the processes that send to the other nodes, so that what is written from then on is nowhere else, and
// kills all at once.
func (c *Cluster) killedAhead(ctx context.Context, old *Node, f *Failover) error {
	senders, err := c.senders(ctx, old)
	if err != nil {
		return err
	}
	signal(senders, syscall.SIGSTOP)
	timer := time.NewTimer(behind)
	defer timer.Stop()
	<-timer.C
	f.Began = history.Now()
	bury, err := old.kill(true)
	if err != nil {
		return err
	}
	return errors.Join(c.led(ctx, old, f), bury(ctx))
}

func (c *Cluster) senders(ctx context.Context, n *Node) ([]int, error) {
	conn, err := pgx.Connect(ctx, c.URL(n.addr))
	if err != nil {
		return nil, fmt.Errorf("patroni: %s: %w", n.name, err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT pid FROM pg_stat_replication")
	if err != nil {
		return nil, fmt.Errorf("patroni: %s: %w", n.name, err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}

// frozen freezes a leader and its Patroni, and lets them go on when another node leads: Patroni always, and the server
// unless it is fenced.
func (c *Cluster) frozen(ctx context.Context, old *Node, f *Failover) error {
	server, err := old.postmaster()
	if err != nil {
		return err
	}
	f.Began = history.Now()
	var stopped []int
	defer func() { signal(stopped, syscall.SIGCONT) }()
	for _, pid := range []int{old.patroni.Process.Pid, server.pid} {
		pids, err := freeze(ctx, pid)
		stopped = append(stopped, pids...)
		if err != nil {
			return err
		}
	}
	if err = c.led(ctx, old, f); err != nil {
		return err
	}
	if f.Kind == Fence {
		bury, err := old.kill(true)
		if err != nil {
			return err
		}
		return bury(ctx)
	}
	timer := time.NewTimer(thawed)
	defer timer.Stop()
	<-timer.C
	return nil
}
