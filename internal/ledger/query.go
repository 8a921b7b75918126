package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// question is the Owner of an operation of Query's. It is closed when the operation was answered.
type question chan struct{}

// Query runs a statement and returns its rows as text; nil is NULL. It is for statements that do no harm when they run
// twice: while there is no session, or one is lost, Query goes on until ctx ends. Then it returns at once, and the
// statement may run nevertheless. A statement that the server has undone, because others had a table or a row for too
// long, runs again until ctx ends; of those, one at a time, so that they leave the session to the others.
func (l *Ledger) Query(ctx context.Context, statement *link.Statement, params ...[]byte) ([][][]byte, error) {
	rows, err := l.ask(ctx, statement, params)
	if !Passes(err) {
		return rows, err
	}
	for attempt := 1; ; attempt++ {
		select {
		case l.lane <- struct{}{}:
		case <-ctx.Done():
			return nil, l.undone(ctx, err)
		}
		started := time.Now()
		again, failure := l.ask(ctx, statement, params)
		<-l.lane
		switch {
		case ctx.Err() != nil && failure != nil:
			return nil, l.undone(ctx, err)
		case !Passes(failure):
			return again, failure
		}
		err = failure
		select { // for as long as the session was kept from others
		case <-time.After(max(time.Since(started), rand.N(backoff.Bound(attempt)))): //nolint:gosec // jitter, not a secret
		case <-ctx.Done():
			return nil, l.undone(ctx, err)
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
	return errors.Is(err, link.ErrRetry)
}

// undone is the error of a call whose statement the server has undone again and again, until ctx ended.
func (l *Ledger) undone(ctx context.Context, err error) error {
	return fmt.Errorf("%w: the server undid it: %v", l.ended(ctx), err) //nolint:errorlint // it is only the news
}

// ask runs a statement once, or again when the session was lost meanwhile.
func (l *Ledger) ask(ctx context.Context, statement *link.Statement, params [][]byte) ([][][]byte, error) {
	l.asking.Add(1)
	defer l.asking.Add(-1)
	var lost *Session
	for ctx.Err() == nil {
		s, err := l.wait(ctx, lost)
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
	return nil, l.ended(ctx)
}

var stmtNotify = link.Statement{Name: "pgbaton_notify", SQL: "SELECT pg_notify('pgbaton', $1)"}

// Notify sends a notification to all ledgers of the database, this one included, in a transaction of its own:
// with others it would make their commits wait for one another. Nothing tells whether it arrives.
func (l *Ledger) Notify(payload string) {
	if s := l.Current(); s != nil {
		s.Submit(&link.Op{Kind: link.Call, Call: &stmtNotify, Params: [][]byte{[]byte(payload)}, Alone: true})
		s.Attend()
	}
}

var (
	stmtTend   = link.Statement{Name: "pgbaton_tend", SQL: "SELECT * FROM pgbaton.tend()"}
	stmtRetire = link.Statement{Name: "pgbaton_retire", SQL: "SELECT pgbaton.retire($1)"}
)

// tend tidies up what others have left behind, and reports what was wrong. It is no use of the session that keeps it open.
func (l *Ledger) tend() {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return
	}
	s.link.Submit(&link.Op{Kind: link.Call, Call: &stmtTend, Alone: true, Owner: Completion(func(op *link.Op) {
		for _, row := range op.Rows {
			l.cfg.Report("claims of permits were for longer than they may be, as when the server's clock was set back; "+
				"they were cut short", fmt.Errorf("semaphore %q: %s", row[0], row[1])) //nolint:err113 // for the log
		}
	})})
	s.Attend()
}

// retire forgets the holder, of which nobody needs to know any longer.
func (l *Ledger) retire(ctx context.Context, s *Session) {
	answered := make(question)
	s.link.Submit(&link.Op{
		Kind: link.Call, Call: &stmtRetire, Params: [][]byte{strconv.AppendInt(nil, s.Holder, 10)}, Alone: true, Owner: answered,
	})
	s.Attend()
	select {
	case <-answered: // if it failed, others will do it
	case <-ctx.Done():
	}
}
