package sidecar

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Query runs a statement and returns its rows as text; nil is NULL. It is for statements that do no harm when they run
// twice: while there is no session, or one is lost, Query goes on until ctx ends. Then it returns at once, and the
// statement may run nevertheless. A statement that the server has undone, because others had a table or a row for too
// long, runs again until ctx ends; such statements run one at a time, so that they leave the session to the others.
func (c *Sidecar) Query(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error) {
	rows, err := c.ask(ctx, statement, params)
	if !Passes(err) {
		return rows, err
	}
	for attempt := 1; ; attempt++ {
		select {
		case c.lane <- struct{}{}:
		case <-ctx.Done():
			return nil, c.undone(ctx, err)
		}
		started := time.Now()
		again, failure := c.ask(ctx, statement, params)
		<-c.lane
		switch {
		case ctx.Err() != nil && failure != nil:
			return nil, c.undone(ctx, err)
		case !Passes(failure):
			return again, failure
		}
		err = failure
		select { // for as long as the session was kept from others
		case <-time.After(max(time.Since(started), rand.N(backoff.Bound(attempt)))): //nolint:gosec // jitter, not a secret
		case <-ctx.Done():
			return nil, c.undone(ctx, err)
		}
	}
}

// Passes reports whether an error of the server is one of the moment, after which nothing is done: others had a table or
// a row for too long, a deadlock, a cancel.
func Passes(err error) bool {
	switch pgerr.Code(err) {
	case pgerr.LockNotAvailable, pgerr.DeadlockDetected, pgerr.QueryCanceled:
		return true
	}
	return errors.Is(err, pipeline.ErrRetry)
}

// undone is the error of a call whose statement the server has undone again and again, until ctx ended.
func (c *Sidecar) undone(ctx context.Context, err error) error {
	return fmt.Errorf("%w: the server undid it: %v", c.ended(ctx), err) //nolint:errorlint // it is only the news
}

// ask runs a statement once, or again when the session was lost meanwhile.
func (c *Sidecar) ask(ctx context.Context, statement *pipeline.Statement, params [][]byte) ([][][]byte, error) {
	c.asking.Add(1)
	defer c.asking.Add(-1)
	var lost *Session
	for ctx.Err() == nil {
		s, err := c.wait(ctx, lost)
		if err != nil {
			return nil, err
		}
		rows, err := s.query(ctx, statement, params)
		if !errors.Is(err, lockerr.Lost) {
			return rows, err
		}
		if !s.Alive() {
			lost = s
		}
	}
	return nil, c.ended(ctx)
}

var stmtNotify = pipeline.Statement{Name: "pgbaton_notify", SQL: "SELECT pg_notify('pgbaton', $1)"}

// Notify sends a notification to all sidecars of the database, this one included, in a transaction of its own:
// with others it would make their commits wait for one another. It is not known whether it arrives. There is one channel;
// listeners tell news apart by the prefix of the payload, see [Sidecar.Subscribe].
func (c *Sidecar) Notify(payload string) {
	if c.cfg.Mute {
		return
	}
	if s := c.Current(); s != nil {
		s.Submit(&Op{Statement: &stmtNotify, Params: [][]byte{[]byte(payload)}, Alone: true})
		s.Attend()
	}
}

var (
	stmtTend   = pipeline.Statement{Name: "pgbaton_tend", SQL: "SELECT * FROM pgbaton.tend()"}
	stmtRetire = pipeline.Statement{Name: "pgbaton_retire", SQL: "SELECT pgbaton.retire($1)"}
)

// tend tidies up what others have left behind, and reports what was wrong. It is no use of the session that keeps it open.
func (c *Sidecar) tend() {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s == nil {
		return
	}
	s.pipe.Submit(&Op{Statement: &stmtTend, Alone: true, Then: func(op *Op) {
		for _, row := range op.Rows {
			c.cfg.Report("claims of permits were for longer than they may be, as when the server's clock was set back; "+
				"they were cut short", fmt.Errorf("semaphore %q: %s", row[0], row[1])) //nolint:err113 // for the log
		}
	}})
	s.Attend()
}

// retire forgets the holder, of which nobody needs to know any longer.
func (c *Sidecar) retire(ctx context.Context, s *Session) {
	retire := &Op{
		Statement: &stmtRetire, Params: [][]byte{strconv.AppendInt(nil, s.Holder, 10)}, Alone: true, asked: make(chan struct{}),
	}
	s.pipe.Submit(retire)
	s.Attend()
	select {
	case <-retire.asked: // if it failed, others will do it
	case <-ctx.Done():
	}
}
