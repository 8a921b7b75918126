package campaign

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Desk grants the leaders' locks.
type Desk interface {
	TryMany(ctx context.Context, keys []advisory.Key, mode advisory.Mode) ([]*lockmgr.Hold, []error)
}

// Ledger is the session for rows and notifications.
type Ledger interface {
	Query(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error)
	Notify(payload string)
	Subscribe(prefix string, f func(payload string)) (cancel func())
	Holder(ctx context.Context) (int64, error)
}

// Config is what an office needs to know.
type Config struct {
	Desk   Desk
	Ledger Ledger
	Name   string                        // of the client, for people
	Report func(event string, err error) // for the log
}

// Office runs the campaigns of one client.
type Office struct {
	cfg Config

	mu      sync.Mutex
	posts   map[string]*post
	rested  map[string]time.Time // names that were resigned from, and until when the client holds back
	round   time.Time            // when all are tried next
	polled  time.Time            // when the clerk has looked at all rows of the own terms
	strikes []*strike            // rows to be cleared
	failed  bool                 // the clerk's last statement
	closed  bool
	trying  bool // the campaigner runs
	keeping bool // the clerk runs

	tries chan struct{} // something for the campaigner
	rows  chan struct{} // something for the clerk

	stopped <-chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutines, which start and end again
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// post is a name that somebody may lead, while the client has campaigns for it. Guarded by the office's mutex.
type post struct {
	name      string
	key       advisory.Key
	campaigns int
	waiting   []chan outcome // campaigns that do not lead, in order of arrival; each gets one value
	term      *Term          // nil unless led by this client
	hurry     time.Time      // when to try it apart from the rounds; zero for not at all
	lastError error          // of the last try
}

// outcome is how a wait for a term ended.
type outcome struct {
	term *Term
	err  error
}

// New makes an office. It starts and sends nothing before there is a campaign.
func New(cfg Config) *Office {
	o := &Office{
		cfg: cfg, posts: map[string]*post{}, rested: map[string]time.Time{},
		tries: make(chan struct{}, 1), rows: make(chan struct{}, 1),
	}
	o.ctx, o.stop = context.WithCancel(context.Background())
	o.stopped = o.ctx.Done()
	return o
}

// Busy says whether there are campaigns, or rows to be written.
func (o *Office) Busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.posts)+len(o.strikes) > 0
}

// Campaign is the wish to lead, again and again.
type Campaign struct {
	office *Office
	post   *post
}

// Join begins a campaign for a name, whose lock is key. It ends with Leave.
func (o *Office) Join(name string, key advisory.Key) (*Campaign, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, lockerr.Closed
	}
	p := o.posts[name]
	if p == nil {
		p = &post{name: name, key: key}
		o.posts[name] = p
	}
	p.campaigns++
	if !o.trying {
		o.trying = true
		o.workers.Go(o.campaign)
	}
	if !o.keeping {
		o.keeping = true
		o.workers.Go(o.keep)
	}
	return &Campaign{o, p}, nil
}

// Leave ends the campaign, which must not be waiting or leading.
func (c *Campaign) Leave() {
	o := c.office
	o.mu.Lock()
	if c.post.campaigns--; c.post.campaigns == 0 {
		delete(o.posts, c.post.name)
	}
	o.mu.Unlock()
	chans.Signal(o.tries) // there may be nothing left to do
	chans.Signal(o.rows)
}

// Elect waits until the campaign leads, or ctx ends.
func (c *Campaign) Elect(ctx context.Context) (*Term, error) {
	o, p := c.office, c.post
	answer := make(chan outcome, 1)
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil, lockerr.Closed
	}
	p.waiting = append(p.waiting, answer)
	if len(p.waiting) == 1 && p.term == nil {
		p.hurry = time.Now()
		chans.Signal(o.tries)
	}
	o.mu.Unlock()
	select {
	case got := <-answer:
		if got.term == nil || ctx.Err() == nil {
			return got.term, got.err
		}
		o.decline(got.term)
		return nil, ended(ctx, nil)
	case <-ctx.Done():
	}
	o.mu.Lock()
	lastError := p.lastError
	withdrawn := p.withdraw(answer)
	o.mu.Unlock()
	if !withdrawn { // it was answered meanwhile
		if got := <-answer; got.term != nil {
			o.decline(got.term)
		}
	}
	return nil, ended(ctx, lastError)
}

// decline ends a term in which nobody has worked. The campaign does not wait for it, Close does. Its row may have
// been written, so the clerk must not end before it is cleared, though the campaign may have been the last one.
func (o *Office) decline(t *Term) {
	o.strike(t)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.workers.Go(func() { _ = t.End(o.ctx) })
	} // else Close waits for no new goroutines, and the desk releases everything
}

func (p *post) withdraw(answer chan outcome) bool {
	for i, waiting := range p.waiting {
		if waiting == answer {
			p.waiting = append(p.waiting[:i:i], p.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// ended is the error of a wait that ctx ended; lastError is how the last try failed.
func ended(ctx context.Context, lastError error) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if lastError != nil && lastError != lockerr.NotAcquired { //nolint:errorlint // alone it says only that somebody else leads
		err = fmt.Errorf("%w; the last try: %w", err, lastError)
	}
	return err
}

// Close ends all campaigns: those that wait get Closed, those that lead are asked to resign. It waits for the ends of
// the terms until ctx ends, and then for the office's goroutines.
func (o *Office) Close(ctx context.Context) {
	o.mu.Lock()
	o.closed = true
	var terms []*Term
	for _, p := range o.posts {
		for _, answer := range p.waiting {
			answer <- outcome{err: lockerr.Closed}
		}
		p.waiting = nil
		if p.term != nil {
			terms = append(terms, p.term)
		}
	}
	o.mu.Unlock()
	for _, t := range terms {
		t.ask(fmt.Errorf("%w: %w", lockerr.Resigned, lockerr.Closed))
	}
	for _, t := range terms {
		select {
		case <-t.over:
		case <-ctx.Done():
		}
	}
	o.stop()
	o.workers.Wait()
}
