package patroni

import (
	"context"
	"sync"
	"time"
)

// Gate is the way to the leader, such as a proxy.
type Gate interface {
	// Lead leads connections that come from now on to an address, or nowhere.
	Lead(addr string)
	// Cut ends all connections.
	Cut()
}

// A load balancer that follows the leader asks every half second, and takes a node for dead at the second question that
// gets no answer, as HAProxy does with "inter", "fall" and "on-marked-down shutdown-sessions".
const (
	inter = 500 * time.Millisecond
	fall  = 2
)

// Follow has gates lead to the leader until ctx ends. Connections to a node that no longer leads are cut first. The
// returned function waits for the end.
func (c *Cluster) Follow(ctx context.Context, gates ...Gate) (wait func()) {
	var workers sync.WaitGroup
	workers.Go(func() { c.follow(ctx, gates) })
	return workers.Wait
}

func (c *Cluster) follow(ctx context.Context, gates []Gate) {
	var leader *Node
	misses := 0
	ticker := time.NewTicker(inter)
	defer ticker.Stop()
	lead := func(n *Node, addr string) {
		leader, misses = n, 0
		for _, gate := range gates {
			gate.Lead("") // nobody comes in between
			gate.Cut()
			gate.Lead(addr)
		}
	}
	for {
		switch {
		case leader == nil:
			if n, err := c.Leader(ctx); err == nil {
				lead(n, n.addr)
			}
		case leader.is(ctx, "primary"):
			misses = 0
		default:
			misses++
			if misses >= fall {
				lead(nil, "")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
