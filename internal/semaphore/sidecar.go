package semaphore

import (
	"context"

	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// sessions is the client's connection for rows and notifications, which comes and goes.
type sessions interface {
	// Holder waits for a session, and returns the id of the holder that it is.
	Holder(ctx context.Context) (int64, error)
	// Notify tells all processes.
	Notify(payload string)
	// open asks for a session; the manager is told when there is one.
	open()
}

// connection is a session of the sidecar's. Two are compared with ==.
type connection interface {
	Submit(ops ...*sidecar.Op)
	Help(ctx context.Context, done func() bool)
	Attend()
	CatchUp()
	Alive() bool
	holder() int64 // whom the rows belong to that are written by it
}

// realSessions is the real sidecar.
type realSessions struct{ *sidecar.Sidecar }

func (l realSessions) open() { l.Current() }

type realSession struct{ *sidecar.Session }

func (s realSession) holder() int64 { return s.Holder }

// observer tells the manager of the sidecar's sessions.
type observer struct{ manager *Manager }

var (
	_ sidecar.Observer = observer{}
	_ sidecar.Lender   = observer{}
)

// Opened implements [sidecar.Observer].
func (o observer) Opened(s *sidecar.Session) { o.manager.opened(realSession{s}) }

// Failed implements [sidecar.Observer].
func (o observer) Failed(err error) { o.manager.failed(err) }

// Lost implements [sidecar.Observer].
func (o observer) Lost(s *sidecar.Session, cause error) { o.manager.lost(realSession{s}, cause) }

// LetGo implements [sidecar.Lender].
func (o observer) LetGo(s *sidecar.Session) bool { return o.manager.letGo(realSession{s}) }
