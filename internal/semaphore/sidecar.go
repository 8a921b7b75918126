package semaphore

import (
	"context"

	"github.com/pgbaton/pgbaton/internal/ledger"
	"github.com/pgbaton/pgbaton/internal/link"
)

// sidecar is the client's connection for rows and notifications, which comes and goes.
type sidecar interface {
	// Holder waits for a session, and returns the id of the holder that it is.
	Holder(ctx context.Context) (int64, error)
	// Notify tells all processes.
	Notify(payload string)
	// open asks for a session; the manager is told when there is one.
	open()
}

// connection is a session of the sidecar's. Two are compared with ==.
type connection interface {
	Submit(ops ...*link.Op)
	Help(ctx context.Context, done func() bool)
	Attend()
	CatchUp()
	Jeopardy() <-chan struct{}
	Alive() bool
	holder() int64 // whom the rows belong to that are written by it
}

// ledgerSidecar is the real sidecar.
type ledgerSidecar struct{ *ledger.Ledger }

func (l ledgerSidecar) open() { l.Current() }

type ledgerSession struct{ *ledger.Session }

func (s ledgerSession) holder() int64 { return s.Holder }

// observer tells the manager of the sidecar's sessions.
type observer struct{ manager *Manager }

var (
	_ ledger.Observer = observer{}
	_ ledger.Lender   = observer{}
)

// Opened implements [ledger.Observer].
func (o observer) Opened(s *ledger.Session) { o.manager.opened(ledgerSession{s}) }

// Failed implements [ledger.Observer].
func (o observer) Failed(err error) { o.manager.failed(err) }

// Lost implements [ledger.Observer].
func (o observer) Lost(s *ledger.Session, cause error) { o.manager.lost(ledgerSession{s}, cause) }

// LetGo implements [ledger.Lender].
func (o observer) LetGo(s *ledger.Session) bool { return o.manager.letGo(ledgerSession{s}) }
