package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// lead is a candidate in the background, until the client is closed. Each term is written down as a grant that lasts
// as long as the leader's func runs and has not been told to stop.
func (c *child) lead(_ context.Context, cmd Command) (Answer, error) {
	client := c.client(cmd.Client)
	for i := range max(cmd.Count, 1) {
		name := cmd.Key
		if cmd.Count > 0 {
			name = numbered(cmd.Key, i)
		}
		go func() {
			if err := c.campaign(context.Background(), client, cmd, name); !errors.Is(err, pgbaton.ErrClosed) {
				fmt.Fprintln(os.Stderr, "worker: lead:", err)
				os.Exit(4)
			}
		}()
	}
	return Answer{}, nil
}

// campaign is a candidate until ctx ends or the client is closed.
func (c *child) campaign(ctx context.Context, client *pgbaton.Client, cmd Command, name string) error {
	free := &atomic.Int64{} // since when this candidate may have been elected
	free.Store(history.Now())
	return client.Lead(ctx, name, func(ctx context.Context, lock *pgbaton.Lock) error {
		return c.term(ctx, cmd, name, free, lock)
	})
}

func (c *child) term(ctx context.Context, cmd Command, name string, free *atomic.Int64, lock *pgbaton.Lock) error {
	own, term := &ownTerm{stop: make(chan struct{}), over: lock.Done()}, int64(lock.Token())
	c.terms.Store(cmd.Client+"/"+name, own)
	defer c.terms.CompareAndDelete(cmd.Client+"/"+name, own)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-own.stop:
			stop()
		case <-ctx.Done():
		}
	}()
	op := c.log.Op()
	c.log.Append(history.Event{At: free.Load(), Kind: history.Call, Op: op, Key: name, Mode: history.Exclusive})
	c.log.Append(history.Event{At: history.Now(), Kind: history.Granted, Op: op, Token: term})
	var err error
	if cmd.DSN != "" {
		err = writeFenced(ctx, cmd.DSN, name, term)
	}
	<-ctx.Done()
	at := history.Now()
	free.Store(at)
	// A process that was paused may have been asked to resign before it was told that the lock was lost.
	if errors.Is(context.Cause(ctx), pgbaton.ErrLost) || errors.Is(lock.Err(), pgbaton.ErrLost) {
		c.log.Append(history.Event{At: at, Kind: history.Lost, Op: op})
		return nil
	}
	c.log.Append(history.Event{At: at, Kind: history.Release, Op: op})
	c.log.Append(history.Event{At: at, Kind: history.Released, Op: op})
	return err
}

// ownTerm is a term of one of the child's clients.
type ownTerm struct {
	stop chan struct{}   // closed when the term shall end
	over <-chan struct{} // closed when the term's lock is released or lost
}

// writeFenced writes one row after the other until the term ends.
func writeFenced(ctx context.Context, dsn, name string, term int64) error {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	for {
		err := pgbaton.InTx(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
			if err := pgbaton.Fence(ctx, tx, name, pgbaton.Token(term)); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO written (name, term) VALUES ($1, $2)", name, term)
			return err
		})
		if ctx.Err() != nil || errors.Is(err, pgbaton.ErrStaleToken) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *child) resign(ctx context.Context, cmd Command) (Answer, error) {
	called := history.Now()
	found, ok := c.terms.LoadAndDelete(cmd.Client + "/" + cmd.Key)
	if !ok {
		return Answer{Result: result(Resign, called, pgbaton.ErrNotHeld)}, nil
	}
	own := found.(*ownTerm)
	close(own.stop)
	select {
	case <-own.over:
		return Answer{Result: result(Resign, called, nil)}, nil
	case <-ctx.Done():
		return Answer{Result: result(Resign, called, ctx.Err())}, nil
	}
}

func (c *child) askResign(ctx context.Context, cmd Command) (Answer, error) {
	called := history.Now()
	return Answer{Result: result(AskResign, called, c.client(cmd.Client).RequestResign(ctx, cmd.Key))}, nil
}
