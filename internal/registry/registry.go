package registry

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
)

// Kind is what is held.
type Kind string

// The kinds, as the table has them.
const (
	Lock   Kind = "lock"
	Set    Kind = "set"  // a lock that is held with others, as one
	Once   Kind = "once" // a lock under which a run goes on
	Permit Kind = "permit"
)

// Entry is a grant, or the wait for one, as a walk finds it.
type Entry struct {
	Grant   any // a pointer, by which it is known again
	Waits   bool
	Kind    Kind
	Name    string // for people; "" for none
	Key     advisory.Key
	Shared  bool
	Permits int
	Token   int64
	Listed  bool  // it has a row elsewhere, and needs none here but its client's
	Client  int64 // the id under which the server knows whose it is; 0 if it does not
}

// Config is what a registry needs.
type Config struct {
	Session Session
	Name    string // of the client, for people
	Host    string
	Process int
	Pooled  bool // the client has no session by which the server knows that it lives
	// Walk calls visit for all that is held and waits. The walk holds mutexes: visit does not call anything.
	Walk func(visit func(Entry))
	// Room reports whether there is a connection for publishing; when it is pressing, also whether one can be had.
	Room func(pressing bool) bool
	// Listen is called at each walk while something is held that has lasted for two: from then on operators may ask for it.
	Listen func()
	Report func(event string, err error) // for the log
}

// Registry publishes for one client.
type Registry struct {
	cfg       Config
	publisher int64

	// Of the goroutine that walks.
	walk     int
	found    []Entry // by the last walk
	lasting  bool    // it has found something held as the one before did
	marks    map[any]mark
	rows     int     // published
	told     []int64 // the ids with which the client's own row was published; none if there is no such row
	strange  bool    // the last walk has found something lasting whose id is not among them
	gone     []int64 // rows to be withdrawn
	unlisted int     // as it was published
	doubt    bool    // nobody knows which rows there are
	overdue  int     // for how many walks there has been no room for what is due
	next     int     // the walk after which is published again, after a statement that failed
	misses   int     // how many statements have failed since the last that did not
	swept    time.Time
	said     time.Time // when something was published last
	spoke    int64     // the session by which

	ctx  context.Context //nolint:containedctx // of the goroutine that walks
	stop context.CancelFunc
	over chan struct{}
}

// mark is what is known of a grant.
type mark struct {
	waits  bool
	client int64
	listed bool // it lasts, and its row is elsewhere
	key    advisory.Key
	walk   int       // the last that found it
	first  time.Time // when the first walk has found it so
	row    int64     // 0 if it is not published
}

// New makes a registry, which walks until Close.
func New(cfg Config) *Registry {
	r := &Registry{
		cfg: cfg, publisher: 1 + rand.Int64N(1<<62), //nolint:gosec // only has to be unlike others
		marks: map[any]mark{}, over: make(chan struct{}),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	go r.run()
	return r
}

// run walks once a second.
func (r *Registry) run() {
	defer close(r.over)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-ticker.C:
			r.step(time.Now())
		}
	}
}

// step is one walk, and the statement that follows from it.
func (r *Registry) step(now time.Time) {
	fresh, unlisted := r.look(now)
	if r.lasting {
		r.cfg.Listen()
	}
	touch := r.cfg.Pooled && r.rows > 0 && now.Sub(r.said) >= touchEvery
	moved := len(r.told) > 0 && r.cfg.Session.Known() != 0 && r.cfg.Session.Known() != r.spoke
	if len(fresh) == 0 && len(r.gone) == 0 && unlisted == r.unlisted && !r.doubt && !touch && !moved && !r.strange {
		return
	}
	if r.misses > 0 && r.walk < r.next {
		return
	}
	if !r.cfg.Room(r.overdue >= overdue) {
		r.overdue++
		return // what is due is due at the next walk as well
	}
	r.overdue = 0
	rows, err := r.publish(fresh, unlisted, now)
	if err != nil {
		r.fail(err)
		return
	}
	for i, e := range fresh {
		m := r.marks[e.Grant]
		m.row = rows[i]
		r.marks[e.Grant] = m
	}
	r.rows += len(fresh)
	r.gone, r.unlisted, r.doubt, r.misses, r.said = r.gone[:0], unlisted, false, 0, now
	r.spoke = r.cfg.Session.Known()
}

// look walks, and returns what is to be published, and how many more there are than may be.
func (r *Registry) look(now time.Time) (fresh []Entry, unlisted int) {
	r.walk++
	r.lasting, r.strange = false, false
	clear(r.found) // they keep grants from being collected
	r.found = r.found[:0]
	r.cfg.Walk(func(e Entry) { r.found = append(r.found, e) })
	for _, e := range r.found {
		if e.Client == 0 {
			continue // it is not known yet, or was lost a moment ago
		}
		m, known := r.marks[e.Grant]
		if !known || m.waits != e.Waits || m.client != e.Client || m.key != e.Key {
			r.withdraw(m)
			r.marks[e.Grant] = mark{waits: e.Waits, client: e.Client, key: e.Key, walk: r.walk, first: now}
			continue
		}
		m.walk, m.listed = r.walk, e.Listed
		r.marks[e.Grant] = m
		r.lasting = r.lasting || !e.Waits
		switch {
		case e.Listed:
			r.strange = r.strange || len(r.told) < mostIDs && !slices.Contains(r.told, e.Client)
		case m.row != 0:
		case r.rows+len(fresh) < Most:
			fresh = append(fresh, e)
		default:
			unlisted++
		}
	}
	for grant, m := range r.marks {
		if m.walk != r.walk {
			r.withdraw(m)
			delete(r.marks, grant)
		}
	}
	return fresh, unlisted
}

// withdraw has the row of a grant deleted, if it has one.
func (r *Registry) withdraw(m mark) {
	if m.row != 0 {
		r.gone = append(r.gone, m.row)
		r.rows--
	}
}

// fail notes that a statement was not answered: all that is there is published anew.
func (r *Registry) fail(err error) {
	for grant, m := range r.marks {
		m.row = 0
		r.marks[grant] = m
	}
	r.rows, r.told, r.gone, r.doubt = 0, nil, r.gone[:0], true
	if r.misses == 0 && r.ctx.Err() == nil {
		r.cfg.Report("what is held cannot be published by name at the moment", err)
	}
	r.misses++
	r.next = r.walk + min(r.misses, mostWalks)
}

// Stop ends the walks and, if there is a session anyway, withdraws what is published, before the sessions end that hold it.
func (r *Registry) Stop(ctx context.Context) {
	r.stop()
	<-r.over
	if r.cfg.Session.Known() != 0 {
		r.clear(ctx)
	}
}

// Close withdraws, after Stop, what is still published, if there is room for a session. No new one is asked for of a server that has just not answered: then
// the rows go with the client's sessions, and look until then like those of a client that has died.
func (r *Registry) Close(ctx context.Context, answered bool) {
	if answered && r.cfg.Room(false) {
		r.clear(ctx)
	}
}

// clear withdraws all rows.
func (r *Registry) clear(ctx context.Context) {
	if len(r.told) == 0 && len(r.gone) == 0 && !r.doubt {
		return
	}
	clear(r.marks)
	r.doubt = true
	r.walk++
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := r.send(bounded, nil, 0, false, time.Now()); err == nil {
		r.rows, r.gone, r.doubt = 0, nil, false
	}
}
