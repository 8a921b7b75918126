package main

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/benchmarks/internal/handover"
	"github.com/pgbaton/pgbaton/benchmarks/internal/pairs"
	"github.com/pgbaton/pgbaton/benchmarks/internal/peer"
)

// Holders rest for longer than the slowest poll, so that what they have released goes to one who waits, and
// hold for so long that somebody waits nearly always.
const (
	hold = 150 * time.Millisecond
	rest = 110 * time.Millisecond
)

var handOvers = []struct {
	title               string
	capacity, processes int
	each                int
	peers               []string
}{
	{"capacity 1, 2 processes, each with one worker", 1, 2, 1, []string{
		peer.PgbatonSemaphore, peer.PgbatonLock, peer.Rueidislock, peer.Redislock50, peer.Redislock100, peer.Lua50,
	}},
	{"capacity 1, 4 processes, each with two workers", 1, 4, 2, []string{
		peer.PgbatonSemaphore, peer.PgbatonLock, peer.Rueidislock, peer.Redislock50, peer.Redislock100, peer.Lua50,
	}},
	{"capacity 4, 2 processes, each with five workers", 4, 2, 5, []string{peer.PgbatonSemaphore, peer.Lua50, peer.Lua100}},
	{"capacity 4, 4 processes, each with three workers", 4, 4, 3, []string{peer.PgbatonSemaphore, peer.Lua50, peer.Lua100}},
}

func (o *options) handOvers(ctx context.Context) error {
	fmt.Println("## Hand-over: from a release while somebody waits to the next grant")
	for i, h := range handOvers {
		fmt.Printf("\n%s\n\n| | hand-overs | p50 | p99 | longest | longest wait |\n|---|---|---|---|---|---|\n", h.title)
		for k, name := range h.peers {
			r, err := handover.Measure(ctx, handover.Job{
				Peer: name, At: o.at, Name: fmt.Sprintf("compare/%d/%d/%d", i, k, time.Now().UnixNano()), Capacity: h.capacity,
				Each: h.each, Hold: hold, Rest: rest, For: 10 * o.length,
			}, h.processes)
			if err != nil {
				return err
			}
			fmt.Printf("| %s | %d | %s | %s | %s | %s |\n", name, len(r.Idle),
				ms(r.Idle.At(50)), ms(r.Idle.At(99)), ms(r.Idle.At(100)), ms(r.Waits.At(100)))
		}
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1000) }

var throughputs = []struct {
	title string
	load  pairs.Load
	peers []string
}{
	{
		"one goroutine, a free key",
		pairs.Load{Goroutines: 1},
		[]string{peer.PgbatonLock, peer.TwoSelects, peer.Redislock50, peer.Rueidislock},
	},
	{"10 goroutines, distinct keys", pairs.Load{Goroutines: 10}, []string{peer.PgbatonLock, peer.Redislock50, peer.Rueidislock}},
	{"100 goroutines, distinct keys", pairs.Load{Goroutines: 100}, []string{peer.PgbatonLock, peer.Redislock50, peer.Rueidislock}},
	{"1,000 goroutines, distinct keys", pairs.Load{Goroutines: 1000}, []string{peer.PgbatonLock, peer.Redislock50, peer.Rueidislock}},
	{
		"100 goroutines, one key",
		pairs.Load{Goroutines: 100, OneKey: true},
		[]string{peer.PgbatonLock, peer.Redislock1, peer.Redislock50, peer.Rueidislock},
	},
	{
		"semaphore of 200, one goroutine",
		pairs.Load{Goroutines: 1, OneKey: true, Capacity: 200},
		[]string{peer.PgbatonSemaphore, peer.Lua50},
	},
	{
		"semaphore of 200, 100 goroutines",
		pairs.Load{Goroutines: 100, OneKey: true, Capacity: 200},
		[]string{peer.PgbatonSemaphore, peer.Lua50},
	},
	{
		"semaphore of 4, 100 goroutines",
		pairs.Load{Goroutines: 100, OneKey: true, Capacity: 4},
		[]string{peer.PgbatonSemaphore, peer.Lua50},
	},
}

func (o *options) throughput(ctx context.Context) error {
	fmt.Println("\n## Acquire and release, pairs a second, one process")
	for i, t := range throughputs {
		t.load.For, t.load.Rounds = o.length, o.rounds
		rates, err := pairs.Compare(ctx, o.at, t.load, t.peers)
		if err != nil {
			return fmt.Errorf("measurement %d, %s: %w", i+1, t.title, err)
		}
		fmt.Printf("\n%s\n\n| | pairs/s | pgbaton over it |\n|---|---|---|\n", t.title)
		for _, name := range t.peers {
			fmt.Printf("| %s | %.0f | %.2f |\n", name, rates[name], rates[t.peers[0]]/rates[name])
		}
	}
	return nil
}
