package patroni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// Leader returns the node that leads by the word of its Patroni.
func (c *Cluster) Leader(ctx context.Context) (*Node, error) {
	return c.leaderBut(ctx, nil)
}

// leaderBut returns a leader that is not a certain node. That node is not even asked, since it may be frozen.
func (c *Cluster) leaderBut(ctx context.Context, but *Node) (*Node, error) {
	for _, n := range c.nodes {
		if n != but && n.is(ctx, "primary") {
			return n, nil
		}
	}
	return nil, errors.New("patroni: no node leads")
}

// AwaitLeader waits until a node leads that is not a certain one, and writes.
func (c *Cluster) AwaitLeader(ctx context.Context, but *Node) (*Node, error) {
	var leader *Node
	err := await(ctx, soon, func(ctx context.Context) (err error) {
		if leader, err = c.leaderBut(ctx, but); err != nil {
			return err
		}
		standby, err := ask[bool](ctx, leader, "SELECT pg_is_in_recovery()")
		if err == nil && standby {
			err = fmt.Errorf("patroni: %s leads and is a standby", leader.name)
		}
		return err
	})
	return leader, err
}

// State is what a cluster was like when it was whole: what had been written at the time At was on the disks of all nodes.
type State struct {
	At     int64
	Leader *Node

	timeline int // another one begins when another node leads
}

// AwaitWhole waits until one node leads, all others follow it, and one of them synchronously if that is asked for.
func (c *Cluster) AwaitWhole(ctx context.Context) (s State, err error) {
	err = await(ctx, Loop/2, func(ctx context.Context) error {
		s, err = c.whole(ctx)
		return err
	})
	return s, err
}

func (c *Cluster) whole(ctx context.Context) (s State, err error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return s, err
	}
	following, synchronous := 0, 0
	for _, n := range c.nodes {
		if n != leader && n.is(ctx, "replica") {
			following++
		}
		if n != leader && n.is(ctx, "synchronous") {
			synchronous++
		}
	}
	if following != len(c.nodes)-1 || (c.synchronous && synchronous != 1) {
		return s, fmt.Errorf("patroni: %d nodes follow %s, %d of them synchronously", following, leader.name, synchronous)
	}
	s = State{At: history.Now(), Leader: leader}
	written, err := ask[string](ctx, leader, "SELECT pg_current_wal_insert_lsn()::text")
	if err != nil {
		return s, err
	}
	if s.timeline, err = ask[int](ctx, leader, "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second) // the leader may have changed
	defer cancel()
	return s, await(ctx, soon, func(ctx context.Context) error {
		behind, err := ask[int](ctx, leader, `SELECT $1::int - count(*) FROM pg_stat_replication
			WHERE state = 'streaming' AND flush_lsn >= $2::text::pg_lsn`, len(c.nodes)-1, written)
		if err == nil && behind != 0 {
			err = fmt.Errorf("patroni: %d nodes are behind %s", behind, leader.name)
		}
		return err
	})
}

// await calls f again and again until it returns nil. Its last error is in the error when the time is over.
func await(ctx context.Context, pause time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}
